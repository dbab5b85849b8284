#!/usr/bin/env bash
# Runs Compose on this stack, with the host's own Compose v2, or else with one in a container.
# Usage: compose.sh [compose's options] COMMAND…      ENV_FILE=… takes another file than deploy/.env
#   COMPOSE_ALSO=…  a further Compose file, in the repository, that adds to the stack's or changes it
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$here")
arguments=(compose --file "$here/docker-compose.yml")
if [ -n "${COMPOSE_ALSO:-}" ]; then arguments+=(--file "$repository/$COMPOSE_ALSO"); fi
if [ -f "${ENV_FILE:-$here/.env}" ]; then arguments+=(--env-file "${ENV_FILE:-$here/.env}"); fi

if docker compose version >/dev/null 2>&1; then
    exec docker "${arguments[@]}" "$@"
fi

# The repository is mounted at its own path, so that paths mean the same here, in there and to the engine.
socket=/var/run/docker.sock
case ${DOCKER_HOST:-} in unix://*) socket=${DOCKER_HOST#unix://} ;; esac
run=(docker run --rm --interactive --network none --volume "$socket:/var/run/docker.sock"
    --volume "$repository:$repository" --workdir "$repository")
# The name may come from the environment instead of the settings, for a Compose on the host too.
if [ -n "${COMPOSE_PROJECT_NAME:-}" ]; then run+=(--env COMPOSE_PROJECT_NAME); fi
if [ -t 0 ] && [ -t 1 ]; then run+=(--tty); fi
exec "${run[@]}" task-runner/compose:local "${arguments[@]}" "$@"
