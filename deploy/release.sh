#!/usr/bin/env bash
# Builds the programs as they are released, into target/optimised.
#
# They are built twice: once to count what runs while two sidecars are loaded as in use (tests/bench/train.py), and once
# more by these counts (rustc's profile-guided optimization). On x86-64, BOLT then lays out mesh-proxy's code by what runs
# together. A request costs such a sidecar a third less CPU time than one of `cargo build --release`. Takes about half an
# hour on two cores. Installs by name what is missing of LLVM's tools, in the version that rustc is made with.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/prerequisites.sh
deploy/prerequisites.sh release
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')
# rustup's component, or Debian's package. Before an older LLVM's, which do not read what rustc's writes.
PATH="$(rustc --print sysroot)/lib/rustlib/$host/bin:/usr/lib/llvm-$llvm/bin:$PATH"

target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
work="$target/release-build"
programs="$target/optimised"
rm -rf "$work/counts"
mkdir -p "$work/counts" "$programs"

# With --target, what runs while cargo builds is not built this way too.
build() {
  local flags="$1"
  shift
  RUSTFLAGS="$flags" CARGO_TARGET_DIR="$work" cargo build --release --locked --workspace --target "$host" "$@"
}
train() {
  LLVM_PROFILE_FILE="$work/counts/%p.profraw" timeout 300 python3 -B tests/bench/train.py --bin "$1"
}

build "-Cprofile-generate" --bin mesh-proxy --bin meshctl
train "$work/$host/release"
llvm-profdata merge --output "$work/counts/all.profdata" "$work"/counts/*.profraw

# BOLT moves code, for which it needs to know all that refers to it.
build "-Cprofile-use=$work/counts/all.profdata -Clink-arg=-Wl,--emit-relocs" --bins
for program in registryd meshctl; do
  strip -o "$programs/$program" "$work/$host/release/$program"
done

case "$host" in
  x86_64-*)
    counting="$work/counts/bin"
    mkdir -p "$counting"
    cp "$programs/meshctl" "$counting/"
    llvm-bolt "$work/$host/release/mesh-proxy" -instrument --instrumentation-file="$work/counts/bolt" \
      --instrumentation-file-append-pid -o "$counting/mesh-proxy" >"$work/counts/bolt.log"
    train "$counting"
    merge-fdata "$work"/counts/bolt.*.fdata >"$work/counts/all.fdata" 2>>"$work/counts/bolt.log"
    llvm-bolt "$work/$host/release/mesh-proxy" -data="$work/counts/all.fdata" -reorder-blocks=ext-tsp \
      -reorder-functions=cdsort -split-functions -split-all-cold -split-eh -use-gnu-stack -o "$programs/mesh-proxy" \
      >>"$work/counts/bolt.log"
    ;;
  *) strip -o "$programs/mesh-proxy" "$work/$host/release/mesh-proxy" ;;
esac
"$programs/mesh-proxy" --version
echo "the programs are in $programs"
