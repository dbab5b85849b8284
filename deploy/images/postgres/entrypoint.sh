#!/bin/sh
# Makes the cluster on the first start, then becomes the server.
# POSTGRES_PASSWORD (required), POSTGRES_USER, POSTGRES_DB, POSTGRES_INITDB_ARGS: as in the official image.
set -eu

if [ "${1#-}" != "$1" ]; then set -- postgres "$@"; fi
if [ "$1" != postgres ]; then exec "$@"; fi

new=$PGDATA/.init

make_cluster() {
    : "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD, the password of the superuser}"
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    # Unquoted on purpose: the variable holds several arguments.
    # shellcheck disable=SC2086
    printf '%s\n' "$POSTGRES_PASSWORD" |
        initdb --pgdata="$new" --username="$user" --pwfile=/dev/stdin \
            --auth-local=trust --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS:-}
    echo 'host all all all scram-sha-256' >>"$new/pg_hba.conf"
    if [ "$database" != postgres ]; then
        echo "CREATE DATABASE \"$database\"" | postgres --single -j -D "$new" postgres >/dev/null
    fi
}

# The volume is the data directory itself and can't be renamed. So the cluster is made beside, and
# PG_VERSION moves last: a kill at any moment before leaves a directory that is made anew.
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -d "$new" ]; then
        echo 'entrypoint: an earlier start was cut off while making the cluster, starting again' >&2
        find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name lost+found -exec rm -rf {} +
    elif [ -n "$(find "$PGDATA" -mindepth 1 -maxdepth 1 ! -name lost+found)" ]; then
        echo "entrypoint: $PGDATA is not empty and holds no cluster, refusing to touch it" >&2
        exit 1
    fi
    make_cluster
    find "$new" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv -t "$PGDATA" {} +
    sync
    mv "$new/PG_VERSION" "$PGDATA/PG_VERSION"
    sync
fi
if [ -d "$new" ]; then rmdir "$new"; fi
exec "$@"
