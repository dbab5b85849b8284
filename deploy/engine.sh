#!/usr/bin/env bash
# Makes sure that a container engine answers, and returns when it does.
#
# A machine that has one keeps it. A bare Debian or Ubuntu gets docker.io from its own packages, and a
# daemon started in its own session where no systemd runs. Anywhere else the script says what to
# install and stops. Safe to call again, and from several processes at once.
set -euo pipefail

readonly LOG_FILE=/var/log/task-runner-dockerd.log
readonly LOCK_FILE=/run/lock/task-runner-engine.lock
readonly START_SECONDS=60

say() { printf '%s\n' "$*" >&2; }

stop_with() {
    say "engine: $1"
    exit 1
}

answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

install_engine() {
    say "engine: no container engine here, installing docker.io from this machine's packages (≈30 s)…"
    export DEBIAN_FRONTEND=noninteractive
    # A third-party source that can't be reached fails the update, but not the install.
    apt-get -qq update || say "engine: apt-get update reported problems, going on with what it has"
    local packages=(docker.io iptables)
    # From Debian 13 on the command line is a package of its own.
    if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
    apt-get -qq install -y --no-install-recommends "${packages[@]}" >/dev/null ||
        stop_with "installing ${packages[*]} failed: run 'apt-get install ${packages[*]}' and see why"
}

# A pid file that outlived its process names, after a reboot, somebody else's process, and the daemon
# would refuse to start because of it.
remove_stale_pid_file() {
    local file=$1 program=$2 pid
    [ -f "$file" ] || return 0
    pid=$(cat "$file")
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$program" ] || rm -f "$file"
}

start_engine() {
    if [ -d /run/systemd/system ]; then
        systemctl start docker || stop_with "'systemctl start docker' failed: see 'journalctl -u docker'"
        return
    fi
    remove_stale_pid_file /var/run/docker.pid dockerd
    remove_stale_pid_file /var/run/docker/containerd/containerd.pid containerd
    say "engine: starting dockerd in its own session, log in $LOG_FILE"
    # Many containers need many open files: take all that this machine grants.
    ulimit -n "$(ulimit -Hn)" || true
    # Descriptor 9 holds the lock; a daemon that inherited it would hold it forever.
    setsid dockerd >>"$LOG_FILE" 2>&1 </dev/null 9>&- &
}

wait_until_it_answers() {
    local deadline=$((SECONDS + START_SECONDS))
    until answers; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            if [ -f "$LOG_FILE" ]; then tail -n 15 "$LOG_FILE" >&2; fi
            stop_with "the daemon did not answer within $START_SECONDS s"
        fi
        sleep 0.2
    done
}

if command -v docker >/dev/null && answers; then exit 0; fi

if [ -n "${DOCKER_HOST:-}" ]; then
    stop_with "DOCKER_HOST is $DOCKER_HOST, but no engine answers there: start it, or unset DOCKER_HOST"
fi
if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
    stop_with "this user may not use /var/run/docker.sock: run as root, or 'sudo usermod -aG docker $(id -un)' and log in again"
fi
if ! command -v apt-get >/dev/null; then
    stop_with "no container engine answers. Install Docker Engine 20.10 or later with Compose v2 (packages docker and docker-compose, or Docker Desktop), start it, and run this again"
fi
if [ "$(id -u)" -ne 0 ]; then
    stop_with "no container engine answers. As root: 'apt-get install docker.io' and start it, or run this command again with sudo"
fi

exec 9>"$LOCK_FILE"
flock 9
# Another process may have started it while this one waited for the lock.
if command -v docker >/dev/null && answers; then exit 0; fi
if ! command -v dockerd >/dev/null; then install_engine; fi
if ! answers; then start_engine; fi
wait_until_it_answers
say "engine: $(docker version --format '{{.Server.Version}}') is up"
