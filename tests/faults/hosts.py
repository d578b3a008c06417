"""Six hosts in namespaces, each with registryd, mesh-proxy and an agent; the CA's process on the first; three members of etcd."""
import ctypes
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

BIN = pathlib.Path(os.environ.get("MESH_BIN", "target/debug")).resolve()
HERE = pathlib.Path(__file__).parent
PREFIX = f"mesh-faults-{os.getpid()}"
NODES = ["ct1", "ct2", "ct3", "ct4", "ct5", "ct6"]
# Each agent lives on three nodes, so that there is another when one fails.
AGENTS = {"opus": ["ct1", "ct2", "ct3"], "grok": ["ct3", "ct4", "ct5"], "scout": ["ct5", "ct6", "ct1"]}
ETCD = [11, 12, 13]
HEARTBEAT_MS, STALE_MS = 1000, 5000
CA_PORT = 3005

# What an upgraded sidecar leaves behind becomes a child of this process, which ends it.
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(*arguments, inside=None):
    """Runs a command to its end, in a namespace if one is named; returns what it printed."""
    command = [*(["ip", "netns", "exec", inside] if inside else []), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def meshctl(*arguments, inside=None):
    return run(BIN / "meshctl", *arguments, inside=inside)


class Program:
    """A process and what it wrote; the same name is started again and again."""
    every = []

    def __init__(self, name, folder, namespace=None):
        self.every.append(self)
        self.name, self.log, self.namespace = name, folder / f"{name}.log", namespace
        self.pid = None

    def start(self, *command, env=None):
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with open(self.log, "ab") as log:
            environment = {**os.environ, **(env or {})}
            for key in ("MESH_CONFIG", "MESH_LOG", "MESH_LOG_FORMAT", "JOURNAL_STREAM", "NOTIFY_SOCKET"):
                environment.pop(key, None)
            made = subprocess.Popen([*inside, *map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env=environment, start_new_session=True)
        self.pid = made.pid
        # Waited for by its number, as those are that an upgrade left.
        made.returncode = 0

    def kill(self, how=signal.SIGKILL):
        """Ends it and waits for that."""
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        os.kill(pid, how)
        until = time.monotonic() + 60
        while is_there(pid):
            if time.monotonic() > until:
                raise SystemExit(f"{self.name} does not end")
            time.sleep(0.01)
        # What libfaketime leaves of a process that is killed, and another process of that number would stumble over.
        for left in ("faketime_shm", "sem.faketime_sem"):
            pathlib.Path(f"/dev/shm/{left}_{pid}").unlink(missing_ok=True)

    def lines(self, pattern, after=0):
        """What the log says that matches, behind so many bytes."""
        with open(self.log, "rb") as log:
            log.seek(after)
            return re.findall(pattern, log.read().decode(errors="replace"))

    def wrote(self):
        return self.log.stat().st_size if self.log.exists() else 0


def is_there(pid):
    """Whether a process, or a thread of it, is still there; takes notice of the end of a child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        # Of a sidecar that handed over to it and still lives.
        process = pathlib.Path(f"/proc/{pid}")
    try:
        ended = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
        return not ended or len(list((process / "task").iterdir())) > 1
    except OSError:
        return False


class Host:
    def __init__(self, number, folder, share):
        self.number, self.name, self.namespace = number, f"ct{number}", f"{PREFIX}-{number}"
        self.ip, self.share, self.logs = f"10.77.0.{number}", share, folder / "logs"
        # Small, so that it can be filled.
        self.own = folder / self.name
        self.own.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", self.own)
        self.config, self.done = self.own / "mesh.yaml", self.logs / f"{self.name}-tasks"
        self.registryd = Program(f"{self.name}-registryd", self.logs, self.namespace)
        self.proxy = Program(f"{self.name}-mesh-proxy", self.logs, self.namespace)
        self.agent = Program(f"{self.name}-agent", self.logs, self.namespace)

    def agents(self):
        return [agent for agent, hosts in AGENTS.items() if self.name in hosts]

    def join(self, ca):
        token = meshctl("invite", self.name, "--dir", ca.folder, "--san", self.ip, "--agents", ",".join(self.agents()))
        store = {"kind": "file", "etcd": {"endpoints": [f"http://10.77.0.{member}:2379" for member in ETCD]}}
        settings = {
            "mesh.advertise_host": self.ip, "mesh.storage_dir": self.share, "mesh.heartbeat_interval_ms": HEARTBEAT_MS,
            "mesh.stale_threshold_ms": STALE_MS, "registryd.agents": json.dumps(self.agents()),
            "registryd.socket": self.own / "registryd.sock", "registryd.store": json.dumps(store),
            # Refuses at once: addresses come from the registry.
            "registryd.dns.upstream": json.dumps(["127.0.0.1:53"]), "proxy.ca_socket": ca.socket,
        }
        arguments = ["join", token.split()[-1], "--no-start", "--config", self.config, "--state-dir", self.own / "state",
                     "--user", "root", "--group", "root", *(["--ca-socket", ca.socket] if self is ca.host else [])]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        meshctl(*arguments, inside=self.namespace)

    def start_registryd(self, env=None):
        self.registryd.start(BIN / "registryd", "--config", self.config, env=env)

    def start_proxy(self, env=None):
        self.proxy.start(BIN / "mesh-proxy", "--config", self.config, env=env)

    def start_agent(self):
        self.agent.start(sys.executable, HERE / "agent.py", self.name, self.done)

    def start(self):
        self.start_agent()
        self.start_registryd()
        self.start_proxy()

    def kill(self):
        for program in (self.proxy, self.registryd, self.agent):
            program.kill()

    def upgrade(self):
        """SIGUSR2 to the sidecar; returns once another process has taken over."""
        before = self.proxy.wrote()
        os.kill(self.proxy.pid, signal.SIGUSR2)
        until = time.monotonic() + 40
        while not (taken := self.proxy.lines(r"upgraded: process (\d+) takes all new work", before)):
            if time.monotonic() > until or self.proxy.lines("upgrade failed", before):
                raise SystemExit(f"{self.name} was not upgraded: see {self.proxy.log}")
            time.sleep(0.05)
        self.proxy.pid = int(taken[0])

    def nodes(self):
        """What the registry says here, by name."""
        shown = run("curl", "--silent", "--max-time", "3", "http://127.0.0.1:3001/mesh/nodes", inside=self.namespace)
        return {node["name"]: node for node in json.loads(shown)}

    def tasks(self):
        """The numbers of the tasks that its agent began, in that order."""
        return [int(line) for line in self.done.read_text().split()] if self.done.exists() else []

    def fill(self):
        """Leaves no room on its file system."""
        fill(self.own / "filler")

    def unmount(self):
        subprocess.run(["umount", "--lazy", self.own], stderr=subprocess.DEVNULL)


def fill(path):
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


class Ca:
    def __init__(self, folder, host):
        self.folder, self.root, self.socket, self.host = folder / "ca", folder / "root", folder / "ca.sock", host
        self.process = Program("ca", folder / "logs", host.namespace)
        self.do("init", "--root-dir", self.root)

    def do(self, *arguments):
        return meshctl("ca", "--dir", self.folder, *arguments)

    def start(self):
        self.process.start(BIN / "meshctl", "ca", "--dir", self.folder, "serve", "--listen", f"{self.host.ip}:{CA_PORT}",
                           "--address", f"{self.host.ip}:{CA_PORT}", "--socket", self.socket, "--socket-group", "root",
                           "--config", self.host.config)

    def kill(self):
        self.process.kill()
        self.socket.unlink(missing_ok=True)

    def chain(self):
        return (self.folder / "intermediate/ca-chain.pem").read_text()


class Etcd:
    """One member."""

    def __init__(self, number, folder):
        self.number, self.data = number, folder / f"etcd-{number}"
        self.process = Program(f"etcd-{number}", folder / "logs", f"{PREFIX}-{number}")

    def start(self):
        client, peer = (f"http://10.77.0.{self.number}:{port}" for port in (2379, 2380))
        everyone = ",".join(f"m{each}=http://10.77.0.{each}:2380" for each in ETCD)
        self.process.start("etcd", "--name", f"m{self.number}", "--initial-cluster", everyone, "--data-dir", self.data,
                           "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                           "--initial-advertise-peer-urls", peer, "--heartbeat-interval", "50", "--election-timeout", "500",
                           "--logger", "zap")

    def is_leader(self):
        shown = run("etcdctl", "--endpoints", f"http://10.77.0.{self.number}:2379", "endpoint", "status", "-w", "json",
                    inside=self.process.namespace)
        status = json.loads(shown)[0]["Status"]
        return status["leader"] == status["header"]["member_id"]


class Share:
    """The folder of mesh.json, on a small file system, shown through one that can hang."""

    def __init__(self, folder, view):
        self.behind, self.path = folder / "share-behind", folder / "share"
        self.behind.mkdir()
        self.path.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", self.behind)
        # Not ended by the signal that ends the test, but by the end of its input.
        self.view = subprocess.Popen([view, self.behind, self.path], stdin=subprocess.PIPE, start_new_session=True)
        until = time.monotonic() + 10
        while not os.path.ismount(self.path):
            if time.monotonic() > until:
                raise SystemExit("the share cannot be mounted (FUSE)")
            time.sleep(0.05)

    def hang(self):
        """Nothing on it is answered until it goes on."""
        self.view.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.view.send_signal(signal.SIGCONT)

    def fill(self):
        fill(self.behind / "filler")

    def empty(self):
        (self.behind / "filler").unlink()

    def unmount(self):
        self.go_on()
        self.view.stdin.close()
        self.view.wait(10)
        subprocess.run(["umount", "--lazy", self.behind], stderr=subprocess.DEVNULL)


class Wire:
    """The network, as wire.py has it."""

    def __init__(self, numbers):
        self.process = subprocess.Popen([sys.executable, HERE / "wire.py", PREFIX, *map(str, numbers)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit("no network namespaces or TUN devices can be made here")

    def rules(self, **rules):
        self.process.stdin.write(json.dumps(rules) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
