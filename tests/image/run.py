"""Runs the compose file's containers with podman, in a network namespace of their own, beside a node of plain processes in
another, and lets their agents call each other: run.py WORK COMPOSE PODMAN... PODMAN is the command with its options; RUN_OPTIONS in
the environment are those of its run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

work, compose, podman = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
BIN = Path(os.environ["MESH_BIN"])
# As deploy/container/mesh.yaml has them.
INSIDE, BESIDE = ("ct110", "192.168.10.110"), ("ct111", "192.168.10.111")
NAMESPACES = {name: f"mesh-image-{os.getpid()}-{name}" for name, _ in (INSIDE, BESIDE)}
LIMITS = shlex.split(os.environ["RUN_OPTIONS"])
# Group mesh of the image.
GROUP = 990
processes = []


def run(*command, check=True):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done


def engine(*arguments, check=True):
    return run(*podman, *arguments, check=check)


def eventually(what, look, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds} s: {what}")
        time.sleep(0.25)
    return found


def network():
    """A cable between two hosts."""
    for name in NAMESPACES.values():
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    first, second = NAMESPACES.values()
    run("ip", "-n", first, "link", "add", "name", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
    for name, address in (INSIDE, BESIDE):
        run("ip", "-n", NAMESPACES[name], "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", NAMESPACES[name], "link", "set", "eth0", "up")


def certificates(folder):
    ca = ("ca", "--dir", work / "ca")
    run(BIN / "meshctl", *ca, "init", "--root-dir", work / "root")
    for name, address in (INSIDE, BESIDE):
        run(BIN / "meshctl", *ca, "issue-node", name, address)
    # What compose.yaml says of tls/.
    (folder / "tls").mkdir()
    shutil.copy(work / "ca/intermediate/ca-chain.pem", folder / "tls/ca-chain.pem")
    for kind in ("crt", "key"):
        shutil.copy(work / f"ca/issued/{INSIDE[0]}.{kind}", folder / f"tls/node.{kind}")
        os.chown(folder / f"tls/node.{kind}", 0, GROUP)
    os.chmod(folder / "tls/node.key", 0o640)


def options(service, folder):
    """podman's options for what a service of the compose file says. The published port is left out: the containers' network
    is a host of its own."""
    known = {"image", "command", "restart", "ports", "network_mode", "read_only", "cap_drop", "security_opt", "user", "volumes",
             "healthcheck", "stop_grace_period"}
    if unknown := service.keys() - known:
        raise SystemExit(f"{compose}: this test does not know what podman calls {', '.join(sorted(unknown))}")
    shared = service.get("network_mode", "").removeprefix("service:")
    found = ["--network", f"container:{shared}" if shared else f"ns:/run/netns/{NAMESPACES[INSIDE[0]]}"]
    if service.get("read_only"):
        # podman would put file systems of its own over /tmp and /run, which others do not.
        found += ["--read-only", "--read-only-tmpfs=false"]
    for option, key in (("--cap-drop", "cap_drop"), ("--security-opt", "security_opt")):
        for each in service.get(key, []):
            # podman takes the option by its name alone.
            found += [option, each.replace("no-new-privileges:true", "no-new-privileges")]
    if user := service.get("user"):
        found += ["--user", user]
    for volume in service.get("volumes", []):
        source, rest = volume.split(":", 1)
        found += ["--volume", f"{folder / source if source.startswith('.') else source}:{rest}"]
    if check := service.get("healthcheck"):
        kind, *test = check["test"]
        assert kind == "CMD", check
        # As an array, which no shell reads.
        found += ["--health-cmd", json.dumps(test)]
        found += ["--health-interval", check["interval"], "--health-timeout", check["timeout"],
                  "--health-start-period", check["start_period"]]
    return [*found, service["image"], *service.get("command", [])]


def background(name, *command):
    log = open(work / f"{Path(command[0]).name}-{BESIDE[0]}.log", "wb")
    processes.append(subprocess.Popen(["ip", "netns", "exec", NAMESPACES[name], *map(str, command)], stdout=log,
                                      stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))


def beside():
    """The other node, of processes, with what it would serve an agent."""
    name, address = BESIDE
    served = work / "served"
    served.mkdir()
    (served / "greeting.txt").write_text("from grok on ct111")
    config = {
        "mesh": {"enabled": True, "node_name": name, "advertise_host": address, "storage_dir": f"{work}/registry",
                 "tls": {"ca_path": f"{work}/ca/intermediate/ca-chain.pem", "cert_path": f"{work}/ca/issued/{name}.crt",
                         "key_path": f"{work}/ca/issued/{name}.key"}},
        "proxy": {"state_dir": f"{work}/state"},
        "registryd": {"agents": ["grok"], "socket": f"{work}/registryd.sock"},
    }
    (work / "registry").mkdir()
    (work / "beside.yaml").write_text(json.dumps(config))
    for program in ("registryd", "mesh-proxy"):
        background(name, BIN / program, "--config", work / "beside.yaml")
    background(name, "python3", "-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory", served)


def confined(name, uid, writable):
    """The container's first process is this user, with no capability and nothing to gain, and writes there only."""
    status = dict(line.split(":", 1) for line in engine("exec", name, "cat", "/proc/1/status").stdout.splitlines())
    assert status["Uid"].split() == [str(uid)] * 4 and status["Gid"].split() == [str(GROUP)] * 4, (name, status)
    for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[key], 16) == 0, (name, key, status[key])
    assert status["NoNewPrivs"].strip() == "1", (name, status)
    for folder in ("/", "/tmp", "/etc/mesh", "/usr/local/bin", "/run", "/var/lib"):
        refused = engine("exec", name, "touch", f"{folder}/written", check=False)
        assert refused.returncode == 1 and "Read-only file system" in refused.stderr, (name, folder, refused)
    for folder in writable:
        engine("exec", name, "touch", f"{folder}/written")


def main():
    folder = work / "compose"
    folder.mkdir()
    shutil.copy(compose, folder)
    shutil.copy(compose.parent / "mesh.yaml", folder)
    certificates(folder)
    network()
    beside()
    services = yaml.safe_load(compose.read_text())["services"]
    for name, service in services.items():
        engine("run", "--detach", "--name", name, "--log-driver", "k8s-file", *LIMITS, *options(service, folder))

    healthy = lambda name: engine("healthcheck", "run", name, check=False).returncode == 0
    for name in ("registryd", "mesh-proxy"):
        eventually(f"the health check of {name} succeeds", lambda: healthy(name))
    confined("mesh-proxy", 991, ["/var/lib/mesh-proxy"])
    confined("registryd", 992, ["/run/mesh", "/var/lib/registryd"])

    ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    from_inside = lambda: engine("exec", "agent", "python", "-c", ask, "http://127.0.0.1:3001/agents/grok/greeting.txt", check=False)
    eventually("the agent in the container reaches grok on the other node", lambda: "from grok on ct111" in from_inside().stdout)
    to_inside = ("ip", "netns", "exec", NAMESPACES[BESIDE[0]], "python3", "-c", ask, "http://127.0.0.1:3001/agents/opus/etc/hostname")
    hostname = engine("exec", "agent", "cat", "/etc/hostname").stdout.strip()
    eventually("grok reaches the agent in the container", lambda: run(*to_inside, check=False).stdout.strip() == hostname)
    lines = engine("logs", "mesh-proxy", check=False)
    log = lines.stdout + lines.stderr
    for told in ("peer.cn=ct111", "ct110"):
        assert told in log, f"mesh-proxy's log does not tell {told}: {log}"
    nodes = engine("exec", "mesh-proxy", "meshctl", "nodes").stdout
    assert "ct110" in nodes and "ct111" in nodes, nodes

    # The health check tells when the program hangs, and SIGTERM ends both in order.
    engine("kill", "--signal", "STOP", "mesh-proxy")
    assert not healthy("mesh-proxy"), "a sidecar that hangs counts as healthy"
    engine("kill", "--signal", "CONT", "mesh-proxy")
    eventually("the sidecar goes on", lambda: healthy("mesh-proxy"))
    for name in ("mesh-proxy", "registryd"):
        engine("stop", "--time", "45", name)
        state = json.loads(engine("inspect", name).stdout)[0]["State"]
        assert state["ExitCode"] == 0, (name, state, engine("logs", name, check=False))
    print("the compose file's containers are confined and healthy, and their agent and another node's call each other")


try:
    main()
except BaseException:
    for name in ("agent", "registryd", "mesh-proxy"):
        told = engine("logs", "--tail", "20", name, check=False)
        sys.stderr.write(f"--- {name}\n{told.stdout}{told.stderr}")
    for log in work.glob("*.log"):
        sys.stderr.write(f"--- {log.name}\n{log.read_text()[-2000:]}")
    raise
finally:
    engine("rm", "--all", "--force", "--time", "1", check=False)
    for process in processes:
        process.terminate()
        process.wait()
    for name in NAMESPACES.values():
        run("ip", "netns", "del", name, check=False)
