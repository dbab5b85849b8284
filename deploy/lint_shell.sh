#!/usr/bin/env bash
# Checks the shell scripts, where shellcheck is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v shellcheck >/dev/null; then
    echo "shellcheck isn't installed, the shell scripts were not checked" >&2
    exit 0
fi
git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
