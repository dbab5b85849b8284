#!/bin/sh
# Becomes the daemon, after it made the container's own control groups writable.
# SHARED_DIR, a folder that others mount too, gets what they need: here the library that sets a clock off.
set -eu

groups=/sys/fs/cgroup
if [ -f "$groups/cgroup.controllers" ]; then
    mount -o remount,rw "$groups"
    # A group that has children of its own may hold no process.
    mkdir -p "$groups/init"
    xargs -rn1 <"$groups/cgroup.procs" >"$groups/init/cgroup.procs" 2>/dev/null || true
    sed -e 's/ / +/g' -e 's/^/+/' <"$groups/cgroup.controllers" >"$groups/cgroup.subtree_control"
else
    for controller in "$groups"/*/; do mount -o remount,bind,rw "$controller"; done
fi
mount -o remount,rw /proc/sys

# The rename makes it whole: somebody waits for it.
if [ -n "${SHARED_DIR:-}" ]; then
    cp /usr/lib/*/faketime/libfaketime.so.1 "$SHARED_DIR/.new"
    mv "$SHARED_DIR/.new" "$SHARED_DIR/libfaketime.so.1"
fi
exec "$@"
