#!/usr/bin/env bash
# Makes the root file system of Debian 13 (trixie) in DIR; run as root.
# Usage: build.sh DIR
set -euo pipefail

readonly root=$1

# The mirror that this machine itself uses; nothing on a machine that isn't Debian: then debootstrap's own.
debian_mirror() {
    command -v apt-get >/dev/null || return 0
    # shellcheck disable=SC2016  # The placeholder is apt's.
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
        head -n 1
}

if ! command -v debootstrap >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends debootstrap >/dev/null
fi
# Unquoted on purpose: without a mirror there is no third argument.
# shellcheck disable=SC2046
debootstrap --variant=minbase --include=ca-certificates trixie "$root" $(debian_mirror)

# Behind a company proxy TLS works only with the machine's extra certificate authorities.
find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$root/usr/local/share/ca-certificates" {} + 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null

# A package that is installed into an image must not start its server there.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

# Nobody reads manuals in an image, and a build that is killed starts again: no fsync for each file.
cat >"$root/etc/dpkg/dpkg.cfg.d/image" <<'END'
force-unsafe-io
path-exclude /usr/share/doc/*
path-exclude /usr/share/man/*
path-exclude /usr/share/locale/*
END
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* \
    "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
