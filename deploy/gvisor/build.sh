# Builds gVisor's runsc, a static program, from the Go module that go.mod beside this
# file pins.
#
#   bash build.sh [DIRECTORY]
#
# Into DIRECTORY/runsc, by default where `agentbox-local` looks for it; prints that path.
# What is there is not built again. Takes about a minute on two cores.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -nE 's|.*gvisor.dev/gvisor v0\.0\.0-([0-9]{14})-[0-9a-f]+.*|\1|p' "$here/go.mod")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/agentbox
directory=${1:-$cache/gvisor-$version}

if [ ! -x "$directory/runsc" ]; then
  # shellcheck source=deploy/go.sh
  . "$here/../go.sh"
  mkdir -p "$directory"
  # A dynamic one dies in its chroot. Whole or not at all, also when two build at once.
  cd "$here"
  CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" \
    -o "$directory/runsc.$$" gvisor.dev/gvisor/runsc >&2
  mv "$directory/runsc.$$" "$directory/runsc"
fi
echo "$directory/runsc"
