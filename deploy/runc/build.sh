# Builds runc from its Go module.
#
#   bash build.sh runc MODULE OUT SHARED
#
# MODULE is a directory with the go.mod and go.sum beside this script, OUT one that gets `bin/runc`,
# SHARED one where Go keeps what it fetches and compiles; the caller removes it. Run by
# `agentbox-local prepare`, which keeps OUT in the cache. Everything comes from the Go module proxy,
# checked by the sums in go.sum, but for libseccomp, which is the system's.
set -euo pipefail

module=$2
out=$3
shared=$4
# shellcheck source=deploy/go.sh
. "$(dirname "$0")/../go.sh"
export GOCACHE=$shared/compiled GOMODCACHE=$shared/modules
# runc enters namespaces by C code, and libseccomp compiles the system-call filters.
export CGO_ENABLED=1 GOFLAGS="-buildvcs=false -trimpath -modcacherw"

cd "$module"
mkdir -p "$out/bin"
go build -tags seccomp -ldflags "-s -w" -o "$out/bin/" github.com/opencontainers/runc
