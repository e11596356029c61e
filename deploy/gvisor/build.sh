# Builds gVisor's static program runsc. The go.mod in this directory pins its version.
#
#   bash build.sh [DIRECTORY]
#
# Writes DIRECTORY/runsc, by default where `agentbox-local` finds it, and prints the path. An existing
# program is not built again. The build takes about a minute on two cores.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -nE 's|.*gvisor.dev/gvisor v0\.0\.0-([0-9]{14})-[0-9a-f]+.*|\1|p' "$here/go.mod")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/agentbox
directory=${1:-$cache/gvisor-$version}

if [ ! -x "$directory/runsc" ]; then
  # shellcheck source=deploy/go.sh
  . "$here/../go.sh"
  mkdir -p "$directory"
  # Static, because a dynamic program fails in gVisor's chroot. Renamed when complete, so that two
  # concurrent builds do not conflict.
  cd "$here"
  CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" \
    -o "$directory/runsc.$$" gvisor.dev/gvisor/runsc >&2
  mv "$directory/runsc.$$" "$directory/runsc"
fi
echo "$directory/runsc"
