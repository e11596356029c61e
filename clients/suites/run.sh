#!/usr/bin/env bash
# Runs the suites of clients against a new system with the default limits, each as a user of its own.
#
#   run.sh PROGRAMS TARGET    PROGRAMS: the directory with agentbox-local and the services;
#                             TARGET: the directory for the clients and their logs
#
# ONLY=NAME limits it to one run; CLIENTS_PORT is the port of the system.
set -euo pipefail
programs=$(realpath "$1")
mkdir -p "$2"
target=$(realpath "$2")
here=$(dirname "$(realpath "$0")")

# The clients, installed again when their versions change.
digest=$(cat "$here"/{requirements,constraints}.txt | sha256sum | cut -c 1-12)
clients=$target/clients-$digest
if [ ! -e "$clients/complete" ]; then
  python3 -c 'import ensurepip, sys; assert sys.version_info >= (3, 11)' 2> /dev/null ||
    { echo "python3 3.11 or newer with venv is missing: apt-get install python3-venv" >&2; exit 1; }
  rm -rf "$target"/clients-*
  python3 -m venv "$clients"
  "$clients/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  touch "$clients/complete"
fi

export AGENTBOX_DIR AGENTBOX_PORT=${CLIENTS_PORT:-18091} AGENTBOX_BIN_DIR=$programs
AGENTBOX_DIR=$(mktemp -d)
trap '"$programs/agentbox-local" clean > /dev/null; rm -rf "$AGENTBOX_DIR"' EXIT
"$programs/agentbox-local" up > /dev/null
# shellcheck disable=SC1091
. "$AGENTBOX_DIR/local.env"
api=$AGENTBOX_URL/api/v1
results=$AGENTBOX_DIR/results
: > "$results"

# post TOKEN PATH BODY: prints the answer.
post() {
  curl -fsS "$api/$2" -H 'Content-Type: application/json' ${1:+-H "Authorization: Bearer $1"} -d "$3"
}

login() {
  post '' auth/login "$(jq -n --arg name "$1" --arg password "$2" '{username: $name, password: $password}')" |
    jq -r .token
}

administrator=$(login "$AGENTBOX_ADMIN_USERNAME" "$AGENTBOX_ADMIN_PASSWORD")

# The clients reach nothing but the API, and write nothing into the home directory.
export CLIENT_URL=$AGENTBOX_URL CLIENT_KEY
export LANGSMITH_TRACING=false MSWEA_SILENT_STARTUP=1 MSWEA_GLOBAL_CONFIG_DIR=$AGENTBOX_DIR/mini-swe-agent
export PYTHONDONTWRITEBYTECODE=1

# run NAME FILE: runs one suite as a new user. Every line of pytest is printed, and its counts are kept.
run() {
  local name=$1 file=$2 password token
  if [ -n "${ONLY:-}" ] && [ "$ONLY" != "$name" ]; then return; fi
  echo "== $name"
  password=$(openssl rand -hex 16)
  post "$administrator" users "$(jq -n --arg name "$name" --arg password "$password" \
    '{username: $name, email: ($name + "@example.com"), password: $password, role: "user"}')" > /dev/null
  token=$(login "$name" "$password")
  CLIENT_KEY=$(post "$token" api-keys '{"description": "conformance suites"}' | jq -r .key)
  timeout --signal=INT "$deadline" "$clients/bin/python" -m pytest "$here/$file" --rootdir "$here" --run-name "$name" --results "$results" || status=1
}

status=0
# Seconds for one run.
deadline=900
cd "$AGENTBOX_DIR"
run inspect-root test_inspect.py
run inspect-user test_inspect.py
run langchain test_langchain.py
run sandboxio test_sandboxio.py
run swe-agent test_swe_agent.py

echo
if [ ! -s "$results" ]; then
  echo "no run${ONLY:+ has the name $ONLY}" >&2
  status=1
fi
cut -d ' ' -f 3- "$results"
awk '{ passed += $1; failed += $2 } END { print passed + 0 " passed, " failed + 0 " failed" }' "$results"
exit "$status"
