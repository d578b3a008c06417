#!/usr/bin/env bash
# All tests: unit tests, documentation tests and the end-to-end cases; then tests/sdk.sh, real clients and servers through
# real sidecars. Installs what they need by name.
# Arguments go to the test programs, for example: tests/run.sh handshake; then tests/sdk.sh is left out.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/prerequisites.sh test
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# Most cases wait for other processes, so more of them than there are cores run at a time.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 3))}"
cargo test --workspace --no-default-features --locked -- "$@"
[ $# -eq 0 ] || exit 0

cargo build --workspace --no-default-features --locked --bins
tests/sdk.sh || {
  status=$?
  # The packages lie on registries that a machine may not reach; then this says so and fails nothing.
  [ "$status" -eq 69 ] || exit "$status"
  echo "##### NOT RUN: the clients and servers of tests/sdk cannot be installed from here. #####"
  echo "##### Run tests/sdk.sh where pypi.org and registry.npmjs.org are reachable. #####"
}
