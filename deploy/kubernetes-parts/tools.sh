# Builds what is used beside a cluster: Helm, and the cluster's DNS server.
#
#   bash tools.sh PART MODULE OUT
#
# As build.sh: a recipe of its own, so that a change of it builds no Kubernetes anew. What is
# built is what the module's `tool` lines name.
set -euo pipefail

module=$2
out=$3
# shellcheck source=deploy/go.sh
. "$(dirname "$0")/../go.sh"
export GOCACHE="${out%/*}/compiled" GOMODCACHE="${out%/*}/modules"
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -modcacherw"

cd "$module"
mkdir -p "$out/bin"
go build -ldflags "-s -w" -o "$out/bin/" tool
