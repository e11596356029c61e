# Installs the missing Debian packages that AgentBox requires on one machine. Without apt or
# root rights, it prints the packages to install.
#
#   bash packages.sh             install the missing packages
#   bash packages.sh kubernetes  also those that a Kubernetes node requires
#   bash packages.sh lint        also those that `make lint-api` requires
#   bash packages.sh fuzz        also those that `make fuzz-parsers` requires
#   bash packages.sh observe     also those that `make observe` requires
#   bash packages.sh browser     also those that `make test-browser` requires
#   bash packages.sh check       print in one line the packages that the built programs miss
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

mode=${1:-install}
missing=()
# need PACKAGE PROGRAM-OR-FILE...: the package is missing when none of them exists.
need() {
  local package=$1 candidate
  shift
  for candidate in "$@"; do
    case $candidate in
      /*) compgen -G "$candidate" > /dev/null && return 0 ;;
      *) command -v "$candidate" > /dev/null && return 0 ;;
    esac
  done
  missing+=("$package")
}

# As `need`, for packages that only builds and tests require.
need_to_build() {
  [ "$mode" = check ] || need "$@"
}

need postgresql '/usr/lib/postgresql/*/bin/initdb' initdb
need libseccomp-dev /usr/include/seccomp.h
need e2fsprogs mkfs.ext4
need mount mount
need containernetworking-plugins /usr/lib/cni/bridge /opt/cni/bin/bridge /usr/libexec/cni/bridge
need nftables nft
need conntrack conntrack
need iptables iptables
need iproute2 ip
need util-linux setpriv
need_to_build protobuf-compiler protoc
need_to_build libprotobuf-dev /usr/include/google/protobuf/timestamp.proto
need mmdebstrap mmdebstrap
need debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg
need gcc gcc
need libc6-dev '/usr/lib/*/libc.a' /usr/lib/libc.a
need_to_build make make
need pkg-config pkg-config
need_to_build busybox busybox
need python3-pip pip3 pip
need curl curl
need ca-certificates /etc/ssl/certs/ca-certificates.crt
need jq jq
need openssl openssl
if [ "${1:-}" = kubernetes ]; then
  need ipset ipset
  need socat socat
  need procps sysctl
fi

if [ "${1:-}" = lint ]; then
  need nodejs node
  need npm npm
fi

if [ "${1:-}" = fuzz ]; then
  need g++ g++
fi

if [ "${1:-}" = observe ]; then
  need prometheus prometheus
fi

if [ "${1:-}" = browser ]; then
  need chromium chromium
fi

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$mode" = check ]; then
  echo "missing packages (Debian's names): ${missing[*]}; run \`make packages\` or \`agentbox-local prepare\`" >&2
  exit 1
fi
if ! command -v apt-get > /dev/null; then
  echo "missing: ${missing[*]} (Debian's names); install them with this system's package manager" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "missing packages; run: sudo apt-get install -y ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"

# Debian starts a service after its installation. AgentBox runs its own Postgres and containerd,
# so the services that are installed here are not started.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' > $policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
# And no system-wide Postgres cluster is created.
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
  mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
fi
log=$(mktemp)
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
  > "$log" 2>&1 < /dev/null; then
  tail -n 5 "$log" >&2
  echo "could not install ${missing[*]}" >&2
  exit 1
fi
rm -f "$log"
