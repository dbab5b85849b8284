#!/usr/bin/env bash
# Runs a command beside a fresh system of its own, and takes that down again. Usage: with_test_stack.sh COMMAND…
#   TEST_PROJECT, TEST_PORT     its name and port, `task-runner-test` on 18000 unless given; its settings are in
#                               deploy/.env.NAME, NAME being the project's without `task-runner-`
#   TEST_SETTINGS               further settings of the system, as words: LOG_LEVEL=warning EXECUTORS=2
#   TASKRUNNER_IMAGE            another name for the app image, when several clones test on one machine
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
readonly PROJECT=${TEST_PROJECT:-task-runner-test}
readonly NAME=${PROJECT#task-runner-}
export ENV_FILE=$here/.env.$NAME
# It would win over the name in the settings.
unset COMPOSE_PROJECT_NAME

# One at a time on a machine, whatever the clone: the name and the port are the same.
exec 9>"/tmp/$PROJECT.$(id -u).lock"
flock --nonblock 9 || { echo 'waiting for another test run on this machine…' >&2; flock 9; }

# Descriptor 9 is not for others: a process that stays behind would hold the lock.
"$here/engine.sh" 9>&-
"$here/clean.sh" "$PROJECT" 9>&-
rm -f "$ENV_FILE"
trap '"$here/clean.sh" "$PROJECT" 9>&-; rm -f "$ENV_FILE"' EXIT
# Words, which a string must be split into.
read -ra settings <<<"${TEST_SETTINGS:-}"
# The tests sign up and in more often than any address of a real user, and don't wait for long pulls.
"$here/up.sh" COMPOSE_PROJECT_NAME="$PROJECT" GATEWAY_BIND=127.0.0.1 GATEWAY_PORT="${TEST_PORT:-18000}" \
    ${TASKRUNNER_IMAGE:+"TASKRUNNER_IMAGE=$TASKRUNNER_IMAGE"} \
    PULL_TIMEOUT_SECONDS=10 LOGIN_RATE=100000/minute LOGIN_ADDRESS_RATE=100000/minute SIGNUP_RATE=100000/hour \
    "${settings[@]}" 9>&-
"$@" 9>&-
