#!/usr/bin/env bash
# All tests: unit tests, documentation tests and the end-to-end cases. Installs what they need by name.
# Arguments go to the test programs, for example: tests/run.sh handshake
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/prerequisites.sh test
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# Most cases wait for other processes, so more of them than there are cores run at a time.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 3))}"
exec cargo test --workspace --locked -- "$@"
