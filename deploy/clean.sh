#!/usr/bin/env bash
# Removes a system from this machine: its containers, its tasks' containers, its networks and its data.
# It goes by labels, so it needs neither settings nor Compose, and cleans after another clone as well.
# Usage: clean.sh [PROJECT]      default: what deploy/.env names, or else `task-runner`
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=${1:-${COMPOSE_PROJECT_NAME:-$(sed -n 's/^COMPOSE_PROJECT_NAME=\([^ ]*\).*/\1/p' "$here/.env" 2>/dev/null || true)}}
project=${project:-task-runner}
composed="label=com.docker.compose.project=$project"
tasks="label=taskrunner.instance=$project"

if ! docker version >/dev/null 2>&1; then exit 0; fi

# remove NOUN… LIST: `docker NOUN… ID…`, when the list isn't empty.
remove() {
    local -a command=("${@:1:$#-1}") ids
    mapfile -t ids <<<"${*: -1}"
    if [ -n "${ids[0]}" ]; then docker "${command[@]}" "${ids[@]}" >/dev/null; fi
}

# The system first, so that no executor starts another container meanwhile.
remove rm --force --volumes "$(docker ps --all --quiet --filter "$composed")"
remove rm --force --volumes "$(docker ps --all --quiet --filter "$tasks")"
remove network rm "$(docker network ls --quiet --filter "$composed")"
remove network rm "$(docker network ls --quiet --filter "$tasks")"
remove network rm "$(docker network ls --quiet --filter "name=^$project-tasks\$")"
remove volume rm "$(docker volume ls --quiet --filter "$composed")"
