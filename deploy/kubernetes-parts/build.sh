# Builds one part of a Kubernetes cluster from its Go module.
#
#   bash build.sh PART MODULE OUT SHARED
#
# MODULE is a directory with a go.mod and go.sum that pin the part, OUT one that gets `bin/`
# and what else the part brings, SHARED one where Go keeps what it fetches and compiles, for
# the parts that follow; the caller removes it. Run by `agentbox-local prepare`, which keeps
# OUT in the cache. Everything comes from the Go module proxy, checked by the sums in go.sum.
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
# The linker's flags, then packages.
build() {
  local flags=$1
  shift
  go build -ldflags "-s -w $flags" -o "$out/bin/" "$@"
}
version_of() {
  go list -m -f '{{.Version}}' "$1"
}

case $part in
  kubernetes)
    # Without it, a client that asks for the version gets v0.0.0.
    version=$(version_of k8s.io/kubernetes)
    minor=${version#v1.}
    stamp=k8s.io/component-base/version
    build "-X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=${minor%%.*}" \
      k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy}
    ;;
  metrics-server)
    build "" sigs.k8s.io/metrics-server/cmd/metrics-server
    ;;
  etcd)
    build "" go.etcd.io/etcd/server/v3
    mv "$out/bin/server" "$out/bin/etcd" 2> /dev/null || mv "$out/bin/v3" "$out/bin/etcd"
    ;;
  containerd)
    version=$(version_of github.com/containerd/containerd/v2)
    build "-X github.com/containerd/containerd/v2/version.Version=${version#v}" \
      github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}
    ;;
  registry)
    build "" ./registry github.com/google/go-containerregistry/cmd/crane
    ;;
  helm)
    build "" helm.sh/helm/v4/cmd/helm
    ;;
  coredns)
    build "" ./coredns
    ;;
  calico)
    build "" github.com/projectcalico/calico/{felix/cmd/calico-felix,cni-plugin/cmd/calico}
    # The kinds that Felix reads from the API server.
    cp -r --no-preserve=mode \
      "$(go list -m -f '{{.Dir}}' github.com/projectcalico/calico)/libcalico-go/config/crd" "$out/crd"
    ;;
  *)
    echo "no recipe for the part $part" >&2
    exit 1
    ;;
esac
