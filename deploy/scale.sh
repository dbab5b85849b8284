#!/usr/bin/env bash
# Runs N executors, now and at each later `make up`.
# Usage: scale.sh N
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if ! [[ ${1:-} =~ ^[0-9]+$ ]]; then
    echo 'usage: make scale N=3' >&2
    exit 1
fi
if [ ! -f "$here/.env" ]; then
    echo "there is no deploy/.env yet: run 'make up' first" >&2
    exit 1
fi
python3 - "$here/.env" "$1" <<'END'
import pathlib, re, sys
path, count = pathlib.Path(sys.argv[1]), sys.argv[2]
path.write_text(re.sub(r"(?m)^EXECUTORS=.*$", f"EXECUTORS={count}", path.read_text()))
END
"$here/compose.sh" up --detach --no-deps --no-build executor
