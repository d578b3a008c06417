"""Checks a workflow beyond its schema, and runs what of its steps needs neither a registry, a token nor a compiler:
workflow.py WORKFLOW."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# .ci/run runs these scripts, or the tests that they are do; gh wants a token.
NOT_HERE = ("apt-get ", "rustup ", ".ci/run", "deploy/release.sh", "deploy/packages.sh ", "MESH_BIN=", "gh ")

jobs = yaml.safe_load(Path(sys.argv[1]).read_text())["jobs"]
version = re.search(r'^version = "(.+)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
toolchain = re.search(r"^FROM (rust:\S+)", (REPOSITORY / "deploy/container/Dockerfile").read_text(), re.MULTILINE)[1]


def expect(holds, what):
    if not holds:
        sys.exit(f"{sys.argv[1]}: {what}")


def options(script):
    """The options that a script takes, as its `case` has them."""
    return set(re.findall(r"^\s*(--[a-z-]+)\)", (REPOSITORY / script).read_text(), re.MULTILINE))


for name, job in jobs.items():
    needs = job.get("needs", [])
    expect(({needs} if isinstance(needs, str) else set(needs)) <= jobs.keys(), f"{name} needs a job that does not exist")
    if "container" in job:
        expect(job["container"]["image"] == toolchain, f"{name} does not run in {toolchain}, which the Dockerfile names")
    for step in job["steps"]:
        for each in re.findall(r"(?:\./)?((?:deploy|tests|\.ci)/[\w./-]+)", step.get("run", "")):
            expect(os.access(REPOSITORY / each, os.X_OK), f"{name} runs {each}, which is not there or not executable")
        if file := step.get("with", {}).get("file"):
            expect((REPOSITORY / file).exists(), f"{name} names {file}, which does not exist")
        for script, rest in re.findall(r"(deploy/[\w./-]+\.sh)([^\n|&;]*)", step.get("run", "")):
            for option in re.findall(r"--[a-z-]+", rest):
                expect(option in options(script), f"{script} does not know {option}")

with tempfile.TemporaryDirectory() as folder:
    for file in ("Cargo.toml", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / file, folder)
    os.mkdir(f"{folder}/packages")
    Path(f"{folder}/packages/meshctl.deb").write_bytes(b"package")
    environment = {**os.environ, "GITHUB_REF_NAME": f"v{version}", "GITHUB_REPOSITORY": "Some/Mesh", "GITHUB_ENV": f"{folder}/env"}
    ran = 0
    for name, job in jobs.items():
        # GitHub's defaults: sh in a container, else bash.
        shell = ["sh", "-e"] if "container" in job else ["bash", "-e"]
        for step in job["steps"]:
            if "run" not in step or step["run"].startswith(NOT_HERE):
                continue
            done = subprocess.run([*shell, "-c", step["run"]], cwd=folder, env=environment, capture_output=True, text=True)
            expect(done.returncode == 0, f"a step of {name} fails: {step['run']}{done.stdout}{done.stderr}")
            ran += 1
    read = lambda file: Path(f"{folder}/{file}").read_text()
    expect(read("env") == f"IMAGE=ghcr.io/some/mesh:{version}\n", f"the image's name: {read('env')}")
    notes = read("notes.md").splitlines()
    expect(notes[0].startswith(f"## {version}") and len(notes) > 2, f"the changelog has nothing on {version}")
    expect(not any(line.startswith("## ") for line in notes[1:]), "the notes tell of other versions")
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=f"{folder}/packages")
    expect(checked.returncode == 0, "SHA256SUMS does not fit the packages")
print(f"the release workflow names what exists, and {ran} of its steps work here")
