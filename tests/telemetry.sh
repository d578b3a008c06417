#!/usr/bin/env bash
# The alerts of deploy/prometheus against promtool, every query of the Grafana dashboard against a real Prometheus, which
# scrapes real daemons, and the daemons' spans against OpenTelemetry's own protobuf classes.
# Installs Prometheus and those classes by name below target/test-tools/telemetry; ends with 69 if that cannot be downloaded. The
# programs are those of target/debug, or of $MESH_BIN. With --picture FILE it takes that of deploy/docs in place of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/programs.sh telemetry
deploy/prerequisites.sh telemetry || exit "$EX_UNAVAILABLE"
PATH="$PATH:$tools/prometheus/usr/bin"

if [ "${1:-}" = --picture ]; then
  exec timeout 150 python3 -B tests/telemetry/dashboard.py "$(command -v prometheus)" --picture "${2:?--picture needs a file}"
fi

promtool check rules deploy/prometheus/mesh.rules.yaml
promtool test rules deploy/prometheus/mesh.rules.test.yaml
timeout 120 python3 -B tests/telemetry/dashboard.py "$(command -v prometheus)"

wanted=$(cat tests/telemetry/requirements.txt)
if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$tools/python"
  python3 -m venv "$tools/python"
  timeout 300 "$tools/python/bin/pip" --quiet --disable-pip-version-check install -r tests/telemetry/requirements.txt ||
    exit "$EX_UNAVAILABLE"
  echo "$wanted" >"$tools/stamp"
fi
timeout 120 "$tools/python/bin/python" -B tests/telemetry/receive.py
