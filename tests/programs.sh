# For the scripts beside it, which read it with the name of their own folder: sets MESH_BIN, where the programs are, tools, where
# the script installs what it needs, and EX_UNAVAILABLE, its exit status where that cannot be had. Ends the script where a program
# is missing.
EX_UNAVAILABLE=69
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
export MESH_BIN="${MESH_BIN:-$target/debug}"
tools="$target/test-tools/$1"
for each in mesh-proxy registryd meshctl; do
  [ -x "$MESH_BIN/$each" ] || {
    echo "$MESH_BIN/$each is missing: cargo build --workspace --no-default-features --locked --bins" >&2
    exit 1
  }
done
