"""Runs real clients against real servers through two sidecars, in each way of naming a destination, and keeps
deploy/docs/clients.md as the run shows it. Started by tests/sdk.sh; --help says what it takes."""

import argparse
import concurrent.futures
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import document
from mesh import Failed, Mesh, end, ends_with_us, free_port, make_ca, start, wait_for
from table import AGENTS, LIMITS, RECIPES, ROWS, TOOLS

HERE = os.path.dirname(os.path.abspath(__file__))
# A driver bounds each of its cells; this bounds the driver.
DRIVER_SECONDS = 60
# Checks of what only sidecars do.
OF_THE_MESH = ("error", "too-large", "stays", "resumes")


def environment(mesh, tools):
    """That of this process, without the proxies and the SDKs' keys that it may have."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**kept, "PYTHONUNBUFFERED": "1",
            "NODE_NO_WARNINGS": "1", **mesh.environment(), **tools,
            # No client speaks TLS here, and some read all certificates of the system each time.
            "SSL_CERT_FILE": f"{mesh.ca}/intermediate/ca-chain.pem"}


def program(command):
    """The command with the interpreters of the cache for the first word."""
    return [TOOLS.get(command[0], command[0]), *command[1:]]


def start_agent(agent, mesh, folder):
    """Starts the agent and waits until it listens; gives its process and the backend section for it."""
    port = free_port(agent.host)
    names = {"PORT": str(port), "FOLDER": folder, "HOST": agent.host}
    os.makedirs(f"{folder}/www/folder")
    with open(f"{folder}/www/folder/index.html", "w") as page:
        page.write("landed")
    command = list(agent.command)
    if "nginx.conf" in command:
        with open(f"{HERE}/agents/nginx.conf") as file:
            text = file.read().replace("LISTEN", agent.listen).replace("PORT", names["PORT"]).replace("FOLDER", folder)
        with open(f"{folder}/nginx.conf", "w") as file:
            file.write(text)
        command[command.index("nginx.conf")] = f"{folder}/nginx.conf"
    command = [word.format(**names) for word in command]
    bases = {name: way["url"] for name, way in mesh.ways().items()}
    bases["direct"] = f"http://{agent.host}:{port}"
    env = {**os.environ, **names, "WAYS": json.dumps(bases), "NODE_NO_WARNINGS": "1"}
    process = start(program(command), f"{folder}/agent.log", env=env, cwd=f"{mesh.folder}/../agents")
    backend = {key: value.format(**names) if isinstance(value, str) else value for key, value in agent.backend.items()}

    def listens():
        if process.poll() is not None:
            raise Failed(f"{agent.name} ended at once: {open(f'{folder}/agent.log').read()[-500:]}")
        if backend["address"].startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(backend["address"].removeprefix("unix:"))
        else:
            socket.create_connection((agent.host, port), 1).close()
        return True
    try:
        wait_for(f"{agent.name} listens", listens, 40)
    except Failed:
        end([process])
        raise
    return process, backend


def run_directly(agent, rows, ca, folder, say):
    """As run_group, but the clients talk to the agent itself: what fails here is not the mesh's fault."""
    folder = f"{folder}/{agent.name}"
    os.makedirs(folder)
    mesh = Mesh(folder, ca)
    process, backend = start_agent(agent, mesh, folder)
    way = {"name": "direct", "url": f"http://{backend['address']}", "headers": {}, "host": None, "proxy": None, "unix": None}
    results = {}
    try:
        for row in rows:
            jobs = [{"check": check, "way": way} for check in row.checks if check not in OF_THE_MESH]
            results[row] = run_driver(row, jobs, mesh) if jobs else {}
            say(row.title, results[row])
    finally:
        end([process])
    return results


def run_driver(row, jobs, mesh):
    """Runs a row's driver for the jobs; gives {(check, way): error or None}."""
    command = program(row.command)
    env = environment(mesh, row.environment)
    try:
        done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=DRIVER_SECONDS,
                              env=env, cwd=f"{mesh.folder}/../clients", preexec_fn=ends_with_us)
        output, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        output, errors = (late.stdout or b"").decode(), f"the driver took more than {DRIVER_SECONDS} s"
    if os.environ.get("SDK_TRACE"):
        print(errors, file=sys.stderr)
    results = {}
    for line in output.splitlines():
        if line.startswith("{"):
            result = json.loads(line)
            results[result["check"], result["way"]] = result["error"]
    for job in jobs:
        results.setdefault((job["check"], job["way"]["name"]), f"the driver said nothing: {errors.strip()[-400:]}")
    return results


def run_recipe(recipe, mesh):
    """Runs a recipe as it stands in the document, but for the addresses; gives an error or None."""
    with open(f"{HERE}/recipes/{recipe.file}") as file:
        text = file.read()
    for written, real in (("127.0.0.1:3001", f"127.0.0.1:{mesh.outbound}"), ("127.0.0.1:3111", f"127.0.0.1:{mesh.own_agent}"),
                          ("/run/mesh-proxy/outbound.sock", f"{mesh.folder}/outbound.sock")):
        text = text.replace(written, real)
    folder = tempfile.mkdtemp(dir=mesh.folder)
    path = f"{folder}/{recipe.file}"
    with open(path, "w") as file:
        file.write(text)
    # Its own environment says all; bash ends with the first command that fails, and finds the node of this test.
    env = {key: value for key, value in environment(mesh, {}).items() if not key.lower().endswith("_proxy")}
    env["PATH"] = f"{os.path.dirname(TOOLS['node'])}:{env['PATH']}"
    options = ["-e"] if recipe.interpreter == "bash" else []
    try:
        done = subprocess.run(program([recipe.interpreter, *options, path]), capture_output=True, text=True, timeout=20, env=env,
                              preexec_fn=ends_with_us)
    except subprocess.TimeoutExpired:
        return "nothing within 20 s"
    if done.returncode == 0 and "grok" in done.stdout.replace("grok.agent", ""):
        return None
    return f"exit code {done.returncode}, {done.stdout[-200:]!r} {' '.join(done.stderr.split())[-400:]}"


def run_group(agent, rows, recipes, ca, folder, say):
    """Starts one agent and a mesh for it, and runs all rows that talk to it; gives {row: {(check, way): error}}."""
    folder = f"{folder}/{agent.name}"
    os.makedirs(folder)
    mesh, processes, backends = Mesh(folder, ca, agent.hosts), [], []
    ways = mesh.ways()
    results = {}
    try:
        for host in mesh.hosts:
            process, backend = start_agent(agent, mesh, f"{folder}/{host}-agent")
            processes.append(process)
            backends.append(backend)
        mesh.start(backends, any("resumes" in row.checks for row in rows))
        for row in rows:
            began = time.monotonic()
            jobs = [{"check": check, "way": ways[way]} for check, way in row.cells()]
            runnable = [job for job in jobs if job["way"]["name"] not in mesh.refused]
            results[row] = run_driver(row, runnable, mesh) if runnable else {}
            for job in jobs:
                name = job["way"]["name"]
                if name in mesh.refused:
                    results[row][job["check"], name] = mesh.refused[name]
            for (check, way), error in results[row].items():
                if row.limit(check, way):
                    results[row][check, way] = None if error else "it passes now: take it from LIMITS in tests/sdk/table.py"
            say(row.title, results[row], time.monotonic() - began)
        for recipe in recipes:
            results[recipe] = {("recipe", recipe.file): run_recipe(recipe, mesh)}
            say(f"recipe {recipe.file}", results[recipe])
    except Failed as failed:
        for each in [*rows, *recipes]:
            if each not in results:
                results[each] = {cell: str(failed) for cell in each.cells()}
                say(each.title, results[each])
    finally:
        mesh.end()
        end(processes)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only rows whose section, name or agent contains one of these")
    parser.add_argument("--write-docs", action="store_true", help="write deploy/docs/clients.md from this run")
    parser.add_argument("--keep", action="store_true", help="keep the folder with configurations and logs")
    parser.add_argument("--direct", action="store_true", help="no sidecars: clients talk to the agents themselves")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    arguments = parser.parse_args()
    wanted = lambda each: not arguments.words or any(
        word.lower() in f"{each.section} {each.title} {each.agent}".lower() for word in arguments.words)
    rows, recipes = [row for row in ROWS if wanted(row)], [recipe for recipe in RECIPES if wanted(recipe)]
    if arguments.list:
        print("\n".join(f"{each.section}: {each.title} ({each.agent})" for each in [*rows, *recipes]))
        return 0
    if arguments.write_docs and arguments.words:
        parser.error("--write-docs needs a whole run")
    for limit in LIMITS:
        if not any(limit.keeps(row, *cell) for row in ROWS for cell in row.cells()):
            parser.error(f"LIMITS in tests/sdk/table.py has one that no row has: {limit}")

    began = time.monotonic()
    folder = tempfile.mkdtemp(prefix="mesh-sdk-")
    lock = threading.Lock()

    def say(title, cells, seconds=0):
        failed = {cell: error for cell, error in cells.items() if error}
        with lock:
            print(f"{'ok  ' if not failed else 'FAIL'} {title}: {len(cells) - len(failed)} of {len(cells)}, {seconds:.1f} s", flush=True)
            for error in dict.fromkeys(failed.values()):
                cells = [cell for cell, each in failed.items() if each == error]
                checks = [f"{check} [{' '.join(way for its, way in cells if its == check)}]" for check in dict(cells)]
                print(f"     {', '.join(checks)}: {error}", flush=True)

    results = {}
    try:
        ca = make_ca(folder)
        # Node looks for packages beside the programs and above, and nowhere else.
        for each in ("clients", "agents"):
            shutil.copytree(f"{HERE}/{each}", f"{folder}/{each}")
        os.symlink(TOOLS["node_modules"], f"{folder}/node_modules")
        groups = [(agent, [row for row in rows if row.agent == agent.name], [r for r in recipes if r.agent == agent.name])
                  for agent in AGENTS]
        groups = [group for group in groups if group[1] or group[2]]
        run = run_group
        if arguments.direct:
            run = lambda agent, rows, _, *more: run_directly(agent, rows, *more)
            # The others are not reached by TCP and HTTP/1.1.
            groups = [group for group in groups if set(group[0].backend) == {"address"} and group[0].host == "127.0.0.1"
                      and "unix" not in group[0].backend["address"]]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 2) as pool:
            for part in pool.map(lambda group: run(*group, ca, folder, say), groups):
                results.update(part)
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)

    cells = [error for each in results.values() for error in each.values()]
    failed = sum(error is not None for error in cells)
    print(f"\n{len(cells) - failed} of {len(cells)} cells pass, in {time.monotonic() - began:.0f} s")
    if arguments.direct:
        return 1 if failed else 0
    if arguments.write_docs:
        document.write(results)
        stale = []
    else:
        stale = document.differences(results, whole=not arguments.words)
        for line in stale:
            print(f"deploy/docs/clients.md does not say what this run shows: {line}")
        if stale:
            print("tests/sdk.sh --write-docs writes it anew")
    return 1 if failed or stale else 0


if __name__ == "__main__":
    sys.exit(main())
