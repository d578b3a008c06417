#!/usr/bin/env bash
# Runs real clients and servers (MCP, A2A, OpenAI, Anthropic, Ollama, LangGraph, gRPC, WebSocket, HTTP) through real sidecars, with
# each way of naming a destination. They are installed below target/test-tools/sdk, in the versions that tests/sdk pins; a second
# run downloads nothing. The binaries are those of target/debug, or of $MESH_BIN. Takes at most eight minutes. Exits with 1 if a
# check fails or deploy/docs/clients.md differs from the run, and with 69 if something cannot be downloaded.
# Arguments: words that select rows, --write-docs to rewrite deploy/docs/clients.md, --list, --keep; see --help.
set -euo pipefail
cd "$(dirname "$0")/.."

# Since this script began.
DOWNLOADED_WITHIN=300
ALL_WITHIN=480
until_second() { echo $(($1 > SECONDS ? $1 - SECONDS : 1)); }

unavailable() {
  echo "tests/sdk.sh: the clients and servers cannot be installed from here" >&2
  exit "$EX_UNAVAILABLE"
}

. tests/programs.sh sdk

mkdir -p "$tools/node"
deploy/prerequisites.sh sdk || unavailable
PATH="$PATH:/usr/sbin:$tools/nginx/usr/sbin"

# A download, tried up to three times.
download() {
  local try
  for try in 1 2 3; do
    if timeout "$(until_second "$DOWNLOADED_WITHIN")" "$@"; then
      return
    fi
    sleep "$try"
  done
  unavailable
}
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
  download "$tools/$1/bin/pip" install --quiet --disable-pip-version-check --no-compile -r "$2"
}
npm_ci() {
  cp tests/sdk/package.json tests/sdk/package-lock.json "$tools/node/"
  # No install script runs: the packages ship what they need.
  PATH="$tools/python/bin:$PATH" download npm ci --prefix "$tools/node" --silent --ignore-scripts --no-audit --no-fund
}
unless_done python tests/sdk/requirements.txt /dev/null venv python tests/sdk/requirements.txt
unless_done python-mcp2 tests/sdk/requirements-mcp2.txt /dev/null venv python-mcp2 tests/sdk/requirements-mcp2.txt
unless_done node tests/sdk/package-lock.json tests/sdk/requirements.txt npm_ci

export MESH_SDK_TOOLS="$tools"
timeout "$(until_second "$ALL_WITHIN")" python3 -B tests/sdk/run.py "$@" || {
  status=$?
  [ "$status" -ne 124 ] || echo "tests/sdk.sh: not done within $ALL_WITHIN s" >&2
  exit "$status"
}
