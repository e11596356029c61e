#!/usr/bin/env bash
# Runs the fuzz targets of the parsers (loadtest/fuzz), one after the other. Installs cargo-fuzz and a
# nightly Rust if they are missing.
#
#   fuzz-parsers.sh CACHE BUILD SECONDS [TARGET...]    BUILD: the directory of builds and of inputs that
#                                                      were found; without TARGET: all targets
#
# Fails after the last target if one has failed. The input of a failure is in loadtest/fuzz/artifacts,
# and cargo-fuzz prints the command that repeats it.
set -euo pipefail
cache=$1
build=$2
limit=$3
shift 3
cd "$(dirname "$(realpath "$0")")"
toolchain=nightly
version=0.13
tool=$cache/cargo-fuzz-$version

command -v rustup > /dev/null ||
  { echo "rustup is missing: the fuzz targets need a nightly Rust (https://rustup.rs)" >&2; exit 1; }
if ! rustup run "$toolchain" rustc --version > /dev/null 2>&1; then
  rustup toolchain install "$toolchain" --profile minimal --no-self-update ||
    { echo "the toolchain $toolchain is missing and could not be installed" >&2; exit 1; }
fi
if [ ! -x "$tool/bin/cargo-fuzz" ]; then
  cargo install cargo-fuzz --version "^$version" --locked --quiet --root "$tool" ||
    { echo "cargo-fuzz $version is missing and could not be installed" >&2; exit 1; }
fi
PATH=$tool/bin:$PATH

# The dependencies have the versions of the workspace; cargo adds those that only the targets use.
if [ ../Cargo.lock -nt fuzz/Cargo.lock ]; then
  cp ../Cargo.lock fuzz/Cargo.lock
fi
fuzz() { cargo "+$toolchain" fuzz "$@"; }
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < <(fuzz list)
fi
for target in "${targets[@]}"; do
  fuzz build --target-dir "$build" "$target"
done

failed=()
for target in "${targets[@]}"; do
  echo "$target: $limit s"
  mkdir -p "$build/corpus/$target"
  # New inputs are written into the first directory.
  fuzz run --target-dir "$build" "$target" "$build/corpus/$target" "fuzz/seeds/$target" -- \
    -max_total_time="$limit" -timeout=10 -max_len=65536 -verbosity=0 -print_final_stats=1 ||
    failed+=("$target")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
echo "no failure in ${#targets[@]} targets"
