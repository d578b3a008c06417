"""Real sidecars with their registryds on loopback: ct110 is the caller's host; ct111, and ct112 if there is a third, host
the agent grok."""

import ctypes
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

BIN = os.environ.get("MESH_BIN") or os.path.join(os.path.dirname(__file__), "../../target/debug")
EX_CONFIG = 78
# Small, so that a request over the limit is cheap to send.
MAX_BODY_BYTES = 1 << 20


class Failed(Exception):
    """Something that a cell needs did not come up; the text says what."""


# Below those that the system gives to connections: one of them would otherwise take a port before its server does.
PORTS = itertools.cycle(range(10_000, 30_000))
PORTS_LOCK = threading.Lock()
for _ in range(random.randrange(20_000)):
    next(PORTS)


def free_port(host="127.0.0.1"):
    while True:
        with PORTS_LOCK:
            port = next(PORTS)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
                return port
            except OSError:
                continue


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def ends_with_us():
    """For preexec_fn: the process ends with the thread that started it, however that thread ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command, log, env=None, **popen):
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env,
                                preexec_fn=ends_with_us, **popen)


def end(processes):
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + 2
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(what, condition, seconds=20):
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, ValueError, http.client.HTTPException) as error:
            last = error
        time.sleep(0.05)
    raise Failed(f"not within {seconds} s: {what} ({last})")


def merge(into, more):
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


def meshctl(*args):
    done = subprocess.run([f"{BIN}/meshctl", *args], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise Failed(f"meshctl {' '.join(args)}: {done.stderr.strip()}")


def make_ca(folder):
    """One CA for all meshes of a run."""
    meshctl("ca", "--dir", f"{folder}/ca", "init", "--root-dir", f"{folder}/root")
    for name in ("ct110", "ct111", "ct112"):
        meshctl("ca", "--dir", f"{folder}/ca", "issue-node", name, "127.0.0.1")
    return f"{folder}/ca"


class Mesh:
    """Starts with `start`, so that the agent can be told before where it will be found."""

    def __init__(self, folder, ca, hosts=("ct111",)):
        self.folder, self.ca, self.hosts, self.processes = folder, ca, hosts, []
        os.makedirs(f"{folder}/shared")
        self.outbound, self.own_node, self.own_agent = free_port(), free_port(), free_port()
        self.keeper, self.ended = None, False
        # The ways that the configuration does not allow, with what it says.
        self.refused = {}

    def ways(self):
        """How a caller on ct110 can name grok or ct111: for each way the base URL and what goes with it."""
        near, proxy = f"http://127.0.0.1:{self.outbound}", f"http://127.0.0.1:{self.outbound}"
        listed = {
            "node-url": {"url": f"{near}/nodes/ct111"},
            "agent-url": {"url": f"{near}/agents/grok"},
            "node-header": {"url": near, "headers": {"x-mesh-node": "ct111"}},
            "agent-header": {"url": near, "headers": {"x-mesh-agent": "grok"}},
            "node-host": {"url": near, "host": "ct111.mesh"},
            "agent-host": {"url": near, "host": "grok.agent.mesh"},
            "node-proxy": {"url": "http://ct111.mesh", "proxy": proxy},
            "agent-proxy": {"url": "http://grok.agent.mesh", "proxy": proxy},
            "own-node": {"url": f"http://127.0.0.1:{self.own_node}"},
            "own-agent": {"url": f"http://127.0.0.1:{self.own_agent}"},
            "unix": {"url": "http://localhost/agents/grok", "unix": f"{self.folder}/outbound.sock"},
        }
        rest = {"headers": {}, "host": None, "proxy": None, "unix": None, "sidecar": f"{self.folder}/sidecar.pid"}
        return {name: {"name": name, **rest, **way} for name, way in listed.items()}

    def environment(self):
        """What the caller's programs have in their environment, whichever way they use."""
        proxy, direct = f"http://127.0.0.1:{self.outbound}", "localhost,127.0.0.1"
        return {"http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": direct, "NO_PROXY": direct}

    def start(self, backends, restarts=False):
        """`backends`: the section proxy.backend of each host of grok. `restarts`: should the caller's sidecar end, it is
        started again, as systemd would; its pid is in the file that a way calls `sidecar`."""
        listeners = [{"listen": f"127.0.0.1:{self.own_node}", "node": "ct111"}]
        origins = [f"http://127.0.0.1:{port}" for port in (self.outbound, self.own_node, self.own_agent)]
        outbound = {"listen": f"127.0.0.1:{self.outbound}", "listeners": listeners,
                    "allowed_origins": [*origins, "http://ct111.mesh", "http://grok.agent.mesh", "http://localhost"]}
        caller = self.config("ct110", ["opus"], {"outbound": outbound})
        # A configuration that is refused costs its own way only.
        outbound = caller["proxy"]["outbound"]
        if self.check("ct110", caller):
            del outbound["allowed_origins"]
        for way, listener in (
            ("own-agent", {"listen": f"127.0.0.1:{self.own_agent}", "agent": "grok"}),
            ("unix", {"listen": f"unix:{self.folder}/outbound.sock", "mode": "0600"}),
        ):
            outbound["listeners"] = [*listeners, listener]
            refusal = self.check("ct110", caller)
            if refusal:
                self.refused[way] = refusal
            else:
                listeners = outbound["listeners"]
        outbound["listeners"] = listeners
        self.write("ct110", caller)
        for host, backend in zip(self.hosts, backends, strict=True):
            callee = self.config(host, ["grok"], {"outbound": {"listen": f"127.0.0.1:{free_port()}"}, "backend": backend})
            if refusal := self.check(host, callee):
                raise Failed(refusal)
        for name in ("ct110", *self.hosts):
            self.processes.append(self.run(name, "registryd"))
            if name == "ct110" and restarts:
                self.keeper = threading.Thread(target=self.keep_running, daemon=True)
                self.keeper.start()
            else:
                self.processes.append(self.run(name, "mesh-proxy"))
        wait_for("all nodes are online", self.is_up)

    def run(self, name, program):
        return start([f"{BIN}/{program}", "--config", f"{self.folder}/{name}.yaml"], f"{self.folder}/{name}-{program}.log")

    def keep_running(self):
        while not self.ended:
            process = self.run("ct110", "mesh-proxy")
            with open(f"{self.folder}/sidecar.pid", "w") as file:
                file.write(str(process.pid))
            while process.poll() is None and not self.ended:
                time.sleep(0.05)
        end([process])

    def is_up(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.outbound, timeout=2)
        connection.request("GET", "/mesh/nodes")
        nodes = json.loads(connection.getresponse().read())
        connection.close()
        # ct110 has no agent's server, and so is degraded.
        return {node["name"]: node["status"] for node in nodes} == {"ct110": "degraded", **dict.fromkeys(self.hosts, "online")}

    def end(self):
        self.ended = True
        if self.keeper:
            self.keeper.join()
        end(self.processes)

    def config(self, name, agents, proxy):
        os.makedirs(f"{self.folder}/{name}", exist_ok=True)
        return {
            "mesh": {
                "enabled": True, "node_name": name, "agent_channel_port": free_port(), "advertise_host": "127.0.0.1",
                "tls": {"ca_path": f"{self.ca}/intermediate/ca-chain.pem",
                        "cert_path": f"{self.ca}/issued/{name}.crt", "key_path": f"{self.ca}/issued/{name}.key"},
                "storage_dir": f"{self.folder}/shared", "heartbeat_interval_ms": 500, "stale_threshold_ms": 10000,
            },
            "proxy": merge({
                "inbound": {"address": "127.0.0.1"}, "backend": {"address": f"127.0.0.1:{free_port()}"},
                "limits": {"max_body_bytes": MAX_BODY_BYTES}, "state_dir": f"{self.folder}/{name}/state",
            }, proxy),
            "registryd": {"agents": agents, "socket": f"{self.folder}/{name}/registryd.sock"},
        }

    def write(self, name, config):
        with open(f"{self.folder}/{name}.yaml", "w") as file:
            json.dump(config, file, indent=1)  # JSON is YAML

    def check(self, name, config):
        """What mesh-proxy says against the configuration; None if it takes it."""
        self.write(name, config)
        command = [f"{BIN}/mesh-proxy", "check", "--config", f"{self.folder}/{name}.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode == EX_CONFIG:
            return "the configuration is refused: " + done.stderr.strip().splitlines()[-1].strip()
        return None
