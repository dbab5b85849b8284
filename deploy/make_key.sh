#!/usr/bin/env bash
# Makes zarf/keys/KID.pem, a signing key that the users service can read and other users of this machine can't.
# Usage: make_key.sh KID
set -euo pipefail
keys=$(cd "$(dirname "$0")/../zarf/keys" && pwd)
kid=${1:-}
# The app image's group; `make up` lets the users service have this one, or yours when you aren't root.
readonly APP_GROUP=10001

if ! [[ $kid =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]]; then
    echo 'usage: make keys KID=2027-01      (letters, digits, ".", "_" and "-")' >&2
    exit 1
fi
if [ -e "$keys/$kid.pem" ]; then
    echo "zarf/keys/$kid.pem exists already, and replacing it would end every session" >&2
    exit 1
fi
umask 077
# Its progress, dots and pluses, goes to the error output.
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$keys/$kid.pem" 2>/dev/null
if [ "$(id -u)" -eq 0 ]; then chgrp "$APP_GROUP" "$keys/$kid.pem"; fi
chmod 640 "$keys/$kid.pem"
echo "made zarf/keys/$kid.pem. To sign with it: AUTH_ACTIVE_KID=$kid in deploy/.env, then 'make up'."
