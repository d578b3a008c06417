"""Checks what deploys containers: check.py COMPOSE MANIFEST RENDERED MESH-PROXY. MANIFEST must say what RENDERED, the
chart with its own values, says; the configuration in each must load."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from compose_spec import PyCompose

# EX_CONFIG: what mesh-proxy ends with if it does not understand its configuration. (The certificates are not here, so
# that `check` ends with 1 for a good one.)
BAD_CONFIGURATION = 78

compose, manifest, rendered, mesh_proxy = map(Path, sys.argv[1:])


def loads(configuration, where):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(configuration)
        file.flush()
        checked = subprocess.run([mesh_proxy, "check", "--config", file.name], capture_output=True, text=True, timeout=60)
    if checked.returncode == BAD_CONFIGURATION or "private key" not in checked.stdout:
        sys.exit(f"{where}: mesh-proxy does not load its configuration: {checked.stdout}{checked.stderr}")


parsed = PyCompose.from_json(json.dumps(yaml.safe_load(compose.read_text())))
parsed.validate()
services = yaml.safe_load(compose.read_text())["services"]
for name, service in services.items():
    shared = service.get("network_mode", "").removeprefix("service:")
    if shared and shared not in services:
        sys.exit(f"{compose}: {name} is in the network of {shared}, which is no service")
loads((compose.parent / "mesh.yaml").read_text(), compose.parent / "mesh.yaml")

documents = list(yaml.safe_load_all(rendered.read_text()))
if list(yaml.safe_load_all(manifest.read_text())) != documents:
    sys.exit(f"{manifest} is not what the chart makes; its first lines say how to make it anew")
for document in documents:
    if document["kind"] == "ConfigMap":
        loads(document["data"]["mesh.yaml"], rendered)
        break
else:
    sys.exit(f"{rendered} has no configuration")
