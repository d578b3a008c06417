#!/usr/bin/env bash
# The alerts of deploy/prometheus against promtool, and the daemons' spans against OpenTelemetry's own protobuf classes.
# Installs both by name below target/test-tools/telemetry; ends with 69 if that cannot be downloaded. The programs are those
# of target/debug, or of $MESH_BIN.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/programs.sh telemetry
deploy/prerequisites.sh telemetry || exit "$EX_UNAVAILABLE"
PATH="$PATH:$tools/prometheus/usr/bin"

promtool check rules deploy/prometheus/mesh.rules.yaml
promtool test rules deploy/prometheus/mesh.rules.test.yaml

wanted=$(cat tests/telemetry/requirements.txt)
if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$tools/python"
  python3 -m venv "$tools/python"
  timeout 300 "$tools/python/bin/pip" --quiet --disable-pip-version-check install -r tests/telemetry/requirements.txt ||
    exit "$EX_UNAVAILABLE"
  echo "$wanted" >"$tools/stamp"
fi
timeout 120 "$tools/python/bin/python" -B tests/telemetry/receive.py
