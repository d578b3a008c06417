#!/usr/bin/env bash
# Six nodes in network namespaces under steady load, and one fault after the other: deploy/docs/faults.md. Prints a table.
# Takes ten minutes at most; --short one minute. Needs root. Other arguments are parts of the names of faults.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ] || [ ! -c /dev/net/tun ] || [ ! -c /dev/fuse ]; then
  echo "##### NOT RUN: the faults need root, /dev/net/tun and /dev/fuse. #####"
  exit 69
fi
deploy/prerequisites.sh test
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
cargo build --workspace --no-default-features --locked --bins --example share
MESH_BIN="${CARGO_TARGET_DIR:-target}/debug" exec tests/faults/main.py "$@"
