#!/usr/bin/env bash
# Sends property-based requests, generated from the OpenAPI document, to a new system. A 5xx
# response and a response that the document does not describe are failures.
#
#   fuzz.sh PROGRAMS CACHE    PROGRAMS: the directory with agentbox-local and the services
#
# SECONDS_TO_RUN (default 180) limits the run; SEED repeats an earlier run.
set -euo pipefail
programs=$(realpath "$1")
cache=$2
here=$(dirname "$(realpath "$0")")
version=4.32.5
tool=$cache/schemathesis-$version

if [ ! -x "$tool/bin/st" ]; then
  python3 -c 'import ensurepip' 2> /dev/null ||
    { echo "python3 with venv is missing: apt-get install python3-venv" >&2; exit 1; }
  mkdir -p "$cache"
  python3 -m venv "$tool"
  "$tool/bin/pip" install --quiet "schemathesis==$version" || { rm -rf "$tool"; exit 1; }
fi

export AGENTBOX_DIR AGENTBOX_PORT=${FUZZ_PORT:-18090} AGENTBOX_BIN_DIR=$programs
AGENTBOX_DIR=$(mktemp -d)
# Without rate limits, because a 429 response tests nothing else.
for category in AUTH CREATE EXEC OTHER; do export "AGENTBOX_RATE_LIMIT_$category=1000000"; done
export AGENTBOX_FLOOD_PER_SECOND=100000 AGENTBOX_FLOOD_BURST=100000
trap '"$programs/agentbox-local" clean > /dev/null; rm -rf "$AGENTBOX_DIR"' EXIT
"$programs/agentbox-local" up > /dev/null
# shellcheck disable=SC1091
. "$AGENTBOX_DIR/local.env"

json='Content-Type: application/json'
token=$(curl -fsS "$AGENTBOX_URL/api/v1/auth/login" -H "$json" \
  -d "{\"username\":\"$AGENTBOX_ADMIN_USERNAME\",\"password\":\"$AGENTBOX_ADMIN_PASSWORD\"}" | jq -r .token)
# An API key, because `logout` and `change-password` revoke tokens.
key=$(curl -fsS "$AGENTBOX_URL/api/v1/api-keys" -H "$json" -H "Authorization: Bearer $token" -d '{}' | jq -r .key)

# Schemathesis writes its results into the current directory.
cd "$AGENTBOX_DIR"
"$tool/bin/st" --config-file "$here/fuzz.toml" run "$AGENTBOX_URL/openapi.json" \
  --header "Authorization: Bearer $key" \
  --max-time "${SECONDS_TO_RUN:-180}" ${SEED:+--seed "$SEED"}
