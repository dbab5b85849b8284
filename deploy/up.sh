#!/usr/bin/env bash
# Brings the stack up, from a bare machine if need be, and returns when every part is ready.
#
# Usage: up.sh [NAME=VALUE…]      the values go into a new settings file
#   ENV_FILE=…  another settings file than deploy/.env: another system on the same machine
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
readonly here
ENV_FILE=${ENV_FILE:-$here/.env}
export ENV_FILE
cd "$here/.."

say() { printf '%s\n' "$*" >&2; }

# Shows a command's output only when it fails.
quietly() {
    local log
    log=$(mktemp)
    if "$@" >"$log" 2>&1 </dev/null; then
        rm -f "$log"
        return
    fi
    tail -n 40 "$log" >&2
    say "up: '$*' failed, the whole log is in $log"
    return 1
}

# These are mounted into containers whose users are nobody here, and a strict umask would hide them.
make_mounts_readable() {
    chmod a+rx "zarf/keys" deploy/rabbitmq
    chmod a+r "zarf/keys/development.pem" deploy/rabbitmq/*
}

"$here/engine.sh"
"$here/images.sh"
python3 -m deploy.environment "$ENV_FILE" "$@"
make_mounts_readable
say 'building the app image (≈15 s when the requirements are new, else 1 s)…'
quietly "$here/build.sh"
say 'starting the containers…'
quietly "$here/compose.sh" up --detach --remove-orphans --no-build
python3 -m deploy.wait_until_ready "$ENV_FILE"
