#!/usr/bin/env bash
# Measures another commit and this working tree by turns, with the programs of both and the load
# generator of this working tree.
#
#   compare.sh REF CACHE TARGET SCENARIO...
#
# TARGET is the target directory with this tree's release programs. The other commit is checked out and
# built below CACHE/bench, with a target directory of its own. That directory is kept, so that the next
# comparison with the same commit builds nothing; delete it to free the space.
set -euo pipefail
ref=$1 cache=$2 target=$3
shift 3
commit=$(git rev-parse --verify --quiet "$ref^{commit}") ||
  { echo "REF: must be a commit of this repository, got $ref" >&2; exit 1; }
short=$(git rev-parse --short "$commit")
root=$cache/bench/$commit
source=$root/source
built=$root/target
mkdir -p "$root"

# One comparison with a commit at a time: they would check out the same directory.
exec 9> "$root/lock"
flock --nonblock 9 || { echo "another comparison with $short is running" >&2; exit 1; }
trap 'git worktree remove --force "$source" 2> /dev/null || true' EXIT

git worktree prune
if [ ! -e "$source/.git" ]; then
  git worktree add --quiet --detach --force "$source" "$commit"
fi
# Programs of this commit are complete once the marker exists.
if [ ! -e "$built/complete" ]; then
  echo "building $short in $built"
  CARGO_TARGET_DIR=$built make --directory "$source" --no-print-directory build
  touch "$built/complete"
fi

own=$(git describe --always --dirty)
"$target/release/agentbox-loadtest" "$@" --report "$target/bench-compare.json" --commit "$own" \
  --base-programs "$built/release" --base-commit "$short"
