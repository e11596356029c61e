# Builds one program that observes AgentBox from its Go module.
#
#   bash build.sh PART MODULE OUT SHARED
#
# MODULE is a directory with a go.mod and go.sum that pin the part, OUT one that gets `bin/`, SHARED one where
# Go keeps what it fetches and compiles; the caller removes it. Run by `agentbox-local`, which keeps OUT in
# the cache. Everything comes from the Go module proxy, checked by the sums in go.sum.
set -euo pipefail

part=$1
module=$2
out=$3
shared=$4
# shellcheck source=deploy/go.sh
. "$(dirname "$0")/../go.sh"
export GOCACHE=$shared/compiled GOMODCACHE=$shared/modules
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -modcacherw"

cd "$module"
mkdir -p "$out/bin"
case $part in
  jaeger)
    # The module has no web pages: its query service answers with JSON.
    go build -ldflags "-s -w" -o "$out/bin/jaeger" github.com/jaegertracing/jaeger/cmd/all-in-one
    ;;
  collector)
    go build -ldflags "-s -w" -o "$out/bin/collector" .
    ;;
  dashboards)
    go build -ldflags "-s -w" -o "$out/bin/validate-dashboards" .
    ;;
  *)
    echo "no recipe for the part $part" >&2
    exit 1
    ;;
esac
