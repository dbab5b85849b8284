#!/usr/bin/env bash
# Makes sure that the images which the stack stands on exist, under the names of the official ones.
#
# Usage: images.sh [--pull] [NAME…]      (all that the stack needs, unless named; what only tests use when named)
#   --pull   fetch the official ones, also where there is something by that name; fail where it can't
#
# An image that is there is kept. What is missing is pulled where a registry is in reach, else built from
# Debian's packages (deploy/images/). An image that was built here is built again when its recipe changed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
readonly here
# One of each user's own: nobody may open another's file for writing in /tmp.
LOCK_FILE=/tmp/task-runner-images.$(id -u).lock
readonly LOCK_FILE
readonly BASE=debian:trixie-slim
readonly LABEL=task-runner.recipe
readonly COMPOSE=task-runner/compose:local
readonly ENGINE=task-runner/engine:local
# A registry that answers does so at once; one that doesn't must not hold up the start.
readonly PROBE_SECONDS=15
# Downloading and unpacking alternate, so three builds keep two cores busy.
readonly PARALLEL_BUILDS=3

say() { printf '%s\n' "$*" >&2; }

# The folder below deploy/images/ and the usual time to build, for each name.
folder_of() {
    case $1 in
        postgres:*) echo postgres ;;
        rabbitmq:*) echo rabbitmq ;;
        redis:*) echo redis ;;
        python:*) echo python ;;
        busybox:*) echo busybox ;;
        registry:*) echo registry ;;
        "$COMPOSE") echo compose ;;
        "$ENGINE") echo engine ;;
        "$BASE") echo base ;;
        *)
            say "images: no recipe for $1"
            return 1
            ;;
    esac
}

# What the engine's own project publishes that serves as NAME.
official_name() {
    if [ "$1" = "$COMPOSE" ]; then echo docker:cli; else echo "$1"; fi
}

# The recipe that it was built by here; empty for an image from elsewhere, and for one that isn't there.
built_by() { docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$1" 2>/dev/null || true; }

# A hash over the recipe, the base's recipe and the certificates that go into the base.
recipe_of() {
    {
        find "$here/images/base" "$here/images/$(folder_of "$1")" -type f -print0 | sort -z | xargs -0 cat
        find /usr/local/share/ca-certificates -name '*.crt' -exec cat {} + 2>/dev/null || true
    } | sha256sum | cut -c1-16
}

# Missing, or built here by another recipe. An image without the label is somebody else's: it is kept.
is_wanted() {
    local recipe
    docker image inspect "$1" >/dev/null 2>&1 || return 0
    recipe=$(built_by "$1")
    [ -n "$recipe" ] && [ "$recipe" != "$(recipe_of "$1")" ]
}

needs_compose_image() { ! docker compose version >/dev/null 2>&1; }

pull() {
    local official
    official=$(official_name "$1")
    docker pull --quiet "$official" >/dev/null || return 1
    if [ "$official" != "$1" ]; then docker tag "$official" "$1"; fi
}

registry_in_reach() { timeout "$PROBE_SECONDS" docker pull --quiet busybox:latest >/dev/null 2>&1; }

build_base() {
    local root
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "images: no registry in reach, and building from Debian's packages needs root on Debian or Ubuntu."
        say "images: run this as root, or bring the images: 'docker save' elsewhere, 'docker load' here."
        return 1
    fi
    root=$(mktemp -d /var/tmp/task-runner-base.XXXXXX)
    # shellcheck disable=SC2064
    trap "rm -rf '$root'" RETURN
    "$here/images/base/build.sh" "$root" || return 1
    tar -C "$root" -c . | docker import \
        --change "LABEL $LABEL=$(recipe_of "$BASE")" --change 'CMD ["bash"]' - "$BASE"
}

build() {
    if [ "$1" = "$BASE" ]; then
        build_base
        return
    fi
    # The engine's own builder where the command line has no buildx, as in Debian's packages.
    local buildkit=1
    docker buildx version >/dev/null 2>&1 || buildkit=0
    DOCKER_BUILDKIT=$buildkit docker build --label "$LABEL=$(recipe_of "$1")" --network host \
        --build-arg http_proxy --build-arg https_proxy --tag "$1" "$here/images/$(folder_of "$1")"
}

# build_one NUMBER NAME: with progress, and with the log's end when it fails.
build_one() {
    local log started=$SECONDS
    log=$(mktemp)
    say "[$1/$total] building $2 from Debian's packages (≈30 s)…"
    if build "$2" >"$log" 2>&1; then
        say "[$1/$total] $2 is ready ($((SECONDS - started)) s)"
        rm -f "$log"
        return
    fi
    tail -n 25 "$log" >&2
    say "images: building $2 failed, the whole log is in $log"
    return 1
}

build_all() {
    local number=1 running=0 failed=0 name
    if is_wanted "$BASE"; then
        total=$((total + 1))
        build_one "$number" "$BASE" || return 1
        number=$((number + 1))
    fi
    for name in "$@"; do
        if [ "$running" -eq "$PARALLEL_BUILDS" ]; then
            wait -n || failed=1
            running=$((running - 1))
        fi
        build_one "$number" "$name" &
        number=$((number + 1))
        running=$((running + 1))
    done
    while [ "$running" -gt 0 ]; do
        wait -n || failed=1
        running=$((running - 1))
    done
    return "$failed"
}

pull_only=false
if [ "${1:-}" = --pull ]; then
    pull_only=true
    shift
fi
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    # The slowest first: what is built in parallel then ends at about the same time.
    names=(rabbitmq:4 postgres:17 python:3.13-slim redis:8 busybox:latest)
    if needs_compose_image; then names+=("$COMPOSE"); fi
fi

exec 9>"$LOCK_FILE"
flock 9

if $pull_only; then
    for name in "${names[@]}"; do
        say "pulling $(official_name "$name")…"
        pull "$name" || { say "images: pulling $(official_name "$name") failed"; exit 1; }
    done
    exit 0
fi

missing=()
for name in "${names[@]}"; do
    if is_wanted "$name"; then missing+=("$name"); fi
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

total=${#missing[@]}
# Where images were built before, the others are too: the set stays of one kind, and nobody is asked again.
if [ -n "$(built_by "$BASE")" ]; then
    say "images: building what is missing from Debian's packages, as before ('make docker-pull' fetches the official ones)"
elif registry_in_reach; then
    left=()
    number=0
    for name in "${missing[@]}"; do
        number=$((number + 1))
        say "[$number/$total] pulling $(official_name "$name")…"
        pull "$name" || left+=("$name")
    done
    missing=("${left[@]}")
    total=${#missing[@]}
else
    say "images: no registry in reach, building what is missing from Debian's packages"
fi
if [ ${#missing[@]} -gt 0 ]; then build_all "${missing[@]}"; fi
