#!/usr/bin/env bash
# Builds the app image, trusting what this machine trusts. ENV_FILE as in compose.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

find /usr/local/share/ca-certificates -name '*.crt' -exec cp -p -t "$here/certs" {} + 2>/dev/null || true
cd "$here/.."
export ENV_FILE=${ENV_FILE:-$here/.env}
# Compose wants all settings, also for a build. Real ones are made by `make up`, which looks for earlier ones first.
if [ ! -f "$ENV_FILE" ]; then
    ENV_FILE=$here/.env.build
    trap 'rm -f "$ENV_FILE"' EXIT
    python3 -m deploy.environment "$ENV_FILE" 2>/dev/null
fi
"$here/compose.sh" build
# Earlier builds have lost their name to this one and would fill the disk; those in use stay.
docker image prune --force --filter label=task-runner.image >/dev/null
