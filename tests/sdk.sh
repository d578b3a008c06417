#!/usr/bin/env bash
# Real clients and servers (MCP, A2A, OpenAI, Anthropic, gRPC, WebSocket, HTTP) through two real sidecars, in each way of
# naming a destination. Installs them by name, in the versions that tests/sdk pins, below target/test-tools/sdk; a second
# run downloads nothing. The binaries are those of target/debug, or of $MESH_BIN.
# Arguments: words that choose rows, --write-docs to write deploy/docs/clients.md anew, --list, --keep; see --help.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
missing=()
for each in python3 curl; do
  command -v "$each" >/dev/null || missing+=("$each")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  install=(apt-get install -y --no-install-recommends "${missing[@]}")
  "${as_root[@]}" "${install[@]}" >/dev/null 2>&1 || {
    "${as_root[@]}" apt-get update
    "${as_root[@]}" "${install[@]}"
  }
fi

tools="$(realpath -m "${CARGO_TARGET_DIR:-target}")/test-tools/sdk"
mkdir -p "$tools/node"

# nginx is only unpacked: installed, it would be started, on port 80.
PATH="$PATH:/usr/sbin:$tools/nginx/usr/sbin"
if ! command -v nginx >/dev/null; then
  echo "unpacking nginx into $tools"
  packages=$(mktemp -d)
  fetch() { (cd "$packages" && apt-get download nginx) >/dev/null 2>&1; }
  fetch || { "${as_root[@]}" apt-get update && fetch; }
  dpkg-deb -x "$packages"/nginx_*.deb "$tools/nginx"
  rm -rf "$packages"
fi

# Runs the rest if the files named first have changed since it last ran to its end.
unless_done() {
  local stamp="$tools/$1.stamp" sum
  sum=$(cat "${@:2:2}" | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && return
  echo "installing $1 of tests/sdk into $tools"
  "${@:4}"
  echo "$sum" >"$stamp"
}
venv() {
  rm -rf "${tools:?}/$1"
  python3 -m venv "$tools/$1"
  timeout 400 "$tools/$1/bin/pip" install --quiet --disable-pip-version-check --no-compile -r "$2"
}
npm_ci() {
  cp tests/sdk/package.json tests/sdk/package-lock.json "$tools/node/"
  # No install script runs: the packages ship what they need.
  (cd "$tools/node" && PATH="$tools/python/bin:$PATH" timeout 300 npm ci --silent --ignore-scripts --no-audit --no-fund)
}
unless_done python tests/sdk/requirements.txt /dev/null venv python tests/sdk/requirements.txt
unless_done python-mcp2 tests/sdk/requirements-mcp2.txt /dev/null venv python-mcp2 tests/sdk/requirements-mcp2.txt
unless_done node tests/sdk/package-lock.json tests/sdk/requirements.txt npm_ci

export MESH_BIN="${MESH_BIN:-$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug}"
for each in mesh-proxy registryd meshctl; do
  [ -x "$MESH_BIN/$each" ] || {
    echo "$MESH_BIN/$each is missing: cargo build --locked --bins" >&2
    exit 1
  }
done
export MESH_SDK_TOOLS="$tools"
exec timeout 900 python3 -B tests/sdk/run.py "$@"
