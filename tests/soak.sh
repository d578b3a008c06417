#!/usr/bin/env bash
# Two minutes each of many registryds on one file, killed at random; sidecars that are restarted and upgraded under load;
# then everything about trust changes under load (tests/soak/trust.py). Prints what happened and the seed.
# MESH_SEED=<number> repeats a run. Arguments go to the test program, for example a part of a test's name.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/prerequisites.sh test
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
cargo test --workspace --test soak --no-default-features --locked -- --nocapture --test-threads 1 "$@"
[ $# -eq 0 ] || exit 0
cargo build --workspace --no-default-features --locked --bins
MESH_BIN="${CARGO_TARGET_DIR:-target}/debug" tests/soak/trust.py
