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
    tail -n 15 "$log" >&2
    if grep -q 'port is already allocated\|address already in use' "$log"; then
        say "up: another program has the gateway's port: name another one, GATEWAY_PORT in $ENV_FILE, and try again"
    fi
    say "up: '$*' failed, the whole log is in $log"
    return 1
}

# These are mounted into containers whose users are nobody here, and a strict umask would hide them.
make_mounts_readable() {
    chmod a+rx "zarf/keys" deploy/rabbitmq
    chmod a+r "zarf/keys/development.pem" deploy/rabbitmq/*
}

# Passwords that are made anew wouldn't open the data of an earlier system: its own come back from its containers.
keep_earlier_system() {
    local project=${COMPOSE_PROJECT_NAME:-task-runner}
    if [ -f "$ENV_FILE" ] || ! docker volume inspect "${project}_postgres-data" >/dev/null 2>&1; then return; fi
    if python3 -m deploy.recovery "$project" "$ENV_FILE"; then return; fi
    say "up: this machine has the data of a system '$project', but its settings, deploy/.env, are not here."
    say "up: copy that file to $ENV_FILE, or delete that system and its data with 'make clean'."
    return 1
}

"$here/engine.sh"
# Who gives values, as the tests do, has seen to a name or an empty place.
if [ $# -eq 0 ]; then keep_earlier_system; fi
"$here/images.sh"
python3 -m deploy.environment "$ENV_FILE" "$@"
make_mounts_readable
say 'building the app image (≈15 s when the requirements are new, else 1 s)…'
quietly "$here/build.sh"
say 'starting the containers…'
quietly "$here/compose.sh" up --detach --remove-orphans --no-build
python3 -m deploy.wait_until_ready "$ENV_FILE" || {
    "$here/compose.sh" ps --all --format 'table {{.Service}}\t{{.Status}}' >&2
    # A service that ends at its start says in one line which setting is wrong.
    "$here/compose.sh" logs --no-color --tail=30 2>/dev/null | grep 'configuration error' | sort -u >&2 || true
    exit 1
}
