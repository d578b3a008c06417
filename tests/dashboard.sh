#!/usr/bin/env bash
# `meshctl dashboard` in headless Chromium: on the mesh of `meshctl demo`, with real sidecars, and on meshes that
# tests/dashboard/mock.mjs makes up. Installs Chromium and playwright-core by name, the latter below
# target/test-tools/dashboard. The binaries are those of target/debug, or of $MESH_BIN. Ends within two minutes, downloads
# not counted: with 1 if something is not as it should be, and with 69 if something cannot be downloaded.
# Arguments: words that choose tests; --screenshots <folder> takes those of deploy/docs in place of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

DOWNLOADED_WITHIN=300
RUN_WITHIN=${DASHBOARD_WITHIN:-120}

unavailable() {
  echo "tests/dashboard.sh: Chromium or playwright-core cannot be installed from here" >&2
  exit "$EX_UNAVAILABLE"
}

. tests/programs.sh dashboard

mkdir -p "$tools"
deploy/prerequisites.sh dashboard || unavailable
sum=$(cat tests/dashboard/package-lock.json | sha256sum)
if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$sum" ]; then
  cp tests/dashboard/package.json tests/dashboard/package-lock.json "$tools/"
  # No install script runs, so no browser is downloaded beside Debian's.
  timeout "$DOWNLOADED_WITHIN" npm ci --prefix "$tools" --silent --ignore-scripts --no-audit --no-fund || unavailable
  echo "$sum" >"$tools/stamp"
fi

export MESH_BIN MESH_DASHBOARD_TOOLS="$tools"
timeout --kill-after 10 "$RUN_WITHIN" node tests/dashboard/run.mjs "$@" || {
  status=$?
  [ "$status" -ne 124 ] || echo "tests/dashboard.sh: not done within $RUN_WITHIN s" >&2
  exit "$status"
}
