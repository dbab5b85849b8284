#!/usr/bin/env bash
# Builds the app image, trusting what this machine trusts. ENV_FILE as in compose.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

find /usr/local/share/ca-certificates -name '*.crt' -exec cp -p -t "$here/certs" {} + 2>/dev/null || true
cd "$here/.."
python3 -m deploy.environment "${ENV_FILE:-$here/.env}"
"$here/compose.sh" build
# Earlier builds have lost their name to this one and would fill the disk; those in use stay.
docker image prune --force --filter label=task-runner.image >/dev/null
