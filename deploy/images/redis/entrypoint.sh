#!/bin/sh
# Becomes the server. As in the official image, the container's own network is the protection, so the
# protected mode, which answers only to the loopback address, is off.
set -eu

if [ "${1#-}" != "$1" ]; then set -- redis-server "$@"; fi
if [ "$1" = redis-server ]; then set -- "$@" --protected-mode no; fi
exec "$@"
