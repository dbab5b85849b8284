#!/usr/bin/env bash
# Makes .venv with what developers and CI use, from hashed requirements.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say 'venv: Python 3.11, 3.12 or 3.13 is needed, and none is on the path'
    return 1
}

python=$(find_python)
say "venv: installing requirements/dev.txt into .venv with $python (≈30 s)…"
# Debian keeps what makes a virtual environment in a package of its own.
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "venv: $python can't make virtual environments: install the package python3-venv"
        exit 1
    fi
    apt-get -qq update || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
fi
"$python" -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
