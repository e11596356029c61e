#!/usr/bin/env bash
# Samples a running AgentBox with perf while a load runs, and draws flame graphs: one of all processes, and
# one of each program.
#
#   profile.sh DIRECTORY [COMMAND...]
#
# COMMAND is the load; without one, whatever runs for SECONDS_TO_RECORD (default 20) is sampled. The
# graphs are DIRECTORY/all.svg, DIRECTORY/api-gateway.svg and so on; shares.txt has each program's part
# of all samples, and the part of the kernel's functions of page tables and TLBs in it.
#
# FREQUENCY (default 499) is the number of samples per second and processor. Programs without debug
# information have names of functions only where their symbols are kept: build with
# CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=line-tables-only for all names, and
# RUSTFLAGS="-C force-frame-pointers=yes" for complete stacks.
set -euo pipefail
usage="usage: profile.sh DIRECTORY [COMMAND...]"
out=${1:?$usage}
shift
here=$(dirname "$(realpath "$0")")
frequency=${FREQUENCY:-499}
seconds=${SECONDS_TO_RECORD:-20}

fail() {
  echo "$1" >&2
  exit 1
}
command -v perf > /dev/null || fail "perf is missing: apt-get install linux-perf (Debian) or linux-tools-generic (Ubuntu)"
command -v python3 > /dev/null || fail "python3 is missing: apt-get install python3"
[ "$(id -u)" = 0 ] || fail "the processes of boxes belong to other users: run this as root"
paranoid=$(cat /proc/sys/kernel/perf_event_paranoid)
[ "$paranoid" -le 1 ] || echo "kernel.perf_event_paranoid is $paranoid: root may sample, others may not" >&2
if [ "$(cat /proc/sys/kernel/kptr_restrict)" = 2 ]; then
  echo "kernel.kptr_restrict is 2: functions of the kernel have no names; set it to 1" >&2
fi

mkdir -p "$out"
data=$out/perf.data
# A virtual machine without a performance monitoring unit has no cycles counter; its timer samples too.
event=cycles
perf stat --event cycles -- true 2>&1 | grep -q 'not supported' && event=cpu-clock
echo "sampling $event at $frequency Hz"
[ $# -gt 0 ] || set -- sleep "$seconds"
status=0
perf record --quiet --all-cpus --event "$event" --freq "$frequency" --call-graph fp --output "$data" -- "$@" ||
  status=$?
[ -s "$data" ] || fail "perf has recorded nothing"

perf script --input "$data" --show-task-events --fields comm,pid,tid,ip,sym 2> "$out/perf-script.log" |
  python3 "$here/flamegraph.py" "$out"
rm -f "$data" "$data.old"
cat "$out/shares.txt"
# The status of the load, whose samples are drawn also if it failed.
exit "$status"
