#!/usr/bin/env bash
# Builds everything and shows two nodes on this machine. Arguments go to `meshctl demo` (such as --once).
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/prerequisites.sh
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
echo "building; the first time takes a few minutes"
cargo build --no-default-features --locked --bins
exec "${CARGO_TARGET_DIR:-target}/debug/meshctl" demo "$@"
