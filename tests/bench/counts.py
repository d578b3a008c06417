#!/usr/bin/env python3
"""What a delegation costs each sidecar, in figures that do not depend on how busy the machine is.

Instructions per request (valgrind's callgrind) and system calls per request (strace) of the calling and of the called
sidecar, with one request at a time on a warm connection and with 64 at a time.

    tests/bench/counts.py                  measures, and compares with the committed figures
    tests/bench/counts.py --write          measures, and replaces the committed figures
    tests/bench/counts.py --only called    one side only

Needs valgrind and strace, and the programs as deploy/release.sh makes them, or those in the folder that --bin names. The exit status
is 1 where a figure is more than 3 % above the committed one.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
BASELINE = os.path.join(HERE, "counts.json")
LOADS = {"1 at a time": (1, 600), "64 at a time": (64, 6400)}
SIDES = {"calling": "ct110", "called": "ct111"}
# More than what two runs of the same program differ by, which is below 1 %.
TOLERANCE = 1.03
# What an agent's request and answer are like.
BODY = json.dumps({"fromAgent": "opus", "message": "Summarise the report, please. " * 5}).encode()
ANSWER = json.dumps({"response": "It went well. " * 8, "agent": "grok", "durationMs": 12}).encode()

CONFIG = """
mesh: {{enabled: true, landlock: {landlock}, node_name: {name}, agent_channel_port: {inbound},
  tls: {{ca_path: {ca}/intermediate/ca-chain.pem, cert_path: {ca}/issued/{name}.crt, key_path: {ca}/issued/{name}.key}}}}
proxy:
  inbound: {{address: 127.0.0.1}}
  outbound: {{listen: 127.0.0.1:{outbound}}}
  backend: {{address: 127.0.0.1:{backend}{agent}}}
  limits: {{max_requests_per_second_per_peer: 0{limits}}}
  state_dir: {folder}
registryd: {{socket: {folder}/registryd.sock}}
"""


class NotAnswered(Exception):
    """An answer that is not the agent's."""


def free_ports(count):
    import socket
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def message(reader):
    """Reads one HTTP/1.1 message with a content-length; its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    if length:
        await reader.readexactly(int(length.group(1)))
    return head


async def agent(reader, writer):
    answer = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)) + ANSWER
    try:
        while True:
            await message(reader)
            writer.write(answer)
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def send(port, connections, requests, to="ct111"):
    """Sends so many requests in all; each must be answered with 200."""
    request = (b"POST /nodes/%s/api/message HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
               b"content-length: %d\r\n\r\n" % (to.encode(), port, len(BODY))) + BODY

    async def one(share):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(share):
            writer.write(request)
            head = await asyncio.wait_for(message(reader), 60)
            if not head.startswith(b"HTTP/1.1 200"):
                raise NotAnswered(head.decode())
        writer.close()

    await asyncio.gather(*(one(requests // connections) for _ in range(connections)))


class Mesh:
    """A sidecar that calls and those that it calls, with one agent behind them all. `agent` and `limits` are more keys of
    proxy.backend and proxy.limits."""

    def __init__(self, folder, programs, landlock=True, called=("ct111",), backend=None, agent="", limits=""):
        self.folder, self.programs = folder, programs
        self.children = []
        ca = os.path.join(folder, "ca")
        self.ca = ca
        names = ["ct110", *called]
        commands = [["init", "--root-dir", os.path.join(folder, "root")], *(["issue-node", name] for name in names)]
        for arguments in commands:
            command = [os.path.join(programs, "meshctl"), "ca", "--dir", ca, *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ports = free_ports(2 * len(names) + 1)
        self.backend = backend or ports.pop()
        self.inbound, outbound = dict(zip(names, ports)), dict(zip(names, ports[len(names):]))
        self.outbound = outbound["ct110"]
        self.configs = {}
        nodes = [{"name": name, "status": "online", "agents": [], "addresses": ["127.0.0.1"], "port": self.inbound[name]}
                 for name in called]
        for name in names:
            at = os.path.join(folder, name)
            os.makedirs(at)
            with open(os.path.join(at, "roster.json"), "w") as file:
                json.dump({"revision": 1, "nodes": nodes if name == "ct110" else []}, file)
            self.configs[name] = os.path.join(at, "mesh.yaml")
            with open(self.configs[name], "w") as file:
                file.write(CONFIG.format(name=name, inbound=self.inbound[name], outbound=outbound[name],
                                         backend=self.backend, agent=agent, limits=limits, folder=at, ca=ca, landlock=str(landlock).lower()))

    def start(self, name, tool=()):
        command = [*tool, os.path.join(self.programs, "mesh-proxy"), "--config", self.configs[name]]
        log = open(os.path.join(self.folder, f"{name}.log"), "ab")
        child = subprocess.Popen(command, stdout=log, stderr=log)
        self.children.append(child)
        return child

    def stop(self):
        for child in self.children:
            child.send_signal(signal.SIGINT if child.args[0] == "strace" else signal.SIGTERM)
        for child in self.children:
            child.wait(timeout=60)
        self.children.clear()

    async def warm(self, connections, requests, to="ct111"):
        """Until the load passes whole: below a tool the first handshakes can take longer than a sidecar waits."""
        end = time.monotonic() + 90
        while True:
            try:
                await send(self.outbound, 1, 1, to)
                await send(self.outbound, connections, requests, to)
                return
            except (NotAnswered, OSError, asyncio.IncompleteReadError):
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)


async def instructions(mesh, side, load):
    connections, requests = LOADS[load]
    out = os.path.join(mesh.folder, "callgrind.out")
    tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    name = SIDES[side]
    for other in SIDES.values():
        if other != name:
            mesh.start(other)
    measured = mesh.start(name, tool)

    def control(*arguments):
        subprocess.run(["callgrind_control", *arguments, str(measured.pid)], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    await mesh.warm(connections, requests)
    control("-i", "on")
    await send(mesh.outbound, connections, requests)
    control("-i", "off")
    mesh.stop()
    total = 0
    for file in os.listdir(mesh.folder):
        if file.startswith("callgrind.out"):
            path = os.path.join(mesh.folder, file)
            found = re.search(r"^totals: (\d+)", open(path).read(), re.MULTILINE)
            total += int(found.group(1)) if found else 0
            os.unlink(path)
    return total / requests


async def system_calls(mesh, side, load):
    connections, requests = LOADS[load]
    out = os.path.join(mesh.folder, "strace.out")
    for name in SIDES.values():
        mesh.start(name)
    await mesh.warm(connections, requests)
    pid = mesh.children[list(SIDES.values()).index(SIDES[side])].pid
    trace = subprocess.Popen(["strace", "-f", "-c", "-o", out, "-p", str(pid)], stderr=subprocess.PIPE)
    # It says that it is attached.
    trace.stderr.readline()
    await asyncio.sleep(0.5)
    await send(mesh.outbound, connections, requests)
    trace.send_signal(signal.SIGINT)
    trace.communicate(timeout=30)
    mesh.stop()
    total = re.search(r"^\s*100\.00\s+\S+\s+(?:\d+\s+)?(\d+)\s+(?:\d+ )?total", open(out).read(), re.MULTILINE)
    return int(total.group(1)) / requests


async def measure(programs, sides):
    figures = {}
    with tempfile.TemporaryDirectory(prefix="mesh-counts-") as folder:
        mesh = Mesh(folder, programs)
        server = await asyncio.start_server(agent, "127.0.0.1", mesh.backend)
        async with server:
            for side in sides:
                for load in LOADS:
                    for what, count in (("instructions", instructions), ("system calls", system_calls)):
                        try:
                            value = await count(mesh, side, load)
                        finally:
                            mesh.stop()
                        figures[f"{side}, {load}, {what}"] = round(value, 1 if value < 1000 else -1)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(HERE, "../../target/optimised"), help="folder of the programs")
    parser.add_argument("--write", action="store_true", help="replace the committed figures")
    parser.add_argument("--only", choices=SIDES, help="one side only")
    options = parser.parse_args()
    for tool in ("valgrind", "strace"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed: apt-get install valgrind strace")
    figures = asyncio.run(measure(options.bin, [options.only] if options.only else list(SIDES)))
    known = json.load(open(BASELINE)) if os.path.exists(BASELINE) else {}
    worse = False
    print("| per request | committed | now | ratio |\n|---|---|---|---|")
    for name, value in figures.items():
        before = known.get(name)
        ratio = value / before if before else None
        worse |= ratio is not None and ratio > TOLERANCE
        print(f"| {name} | {before or '–'} | {value} | {f'{ratio:.3f}' if ratio else '–'} |")
    if options.write:
        with open(BASELINE, "w") as file:
            json.dump({**known, **figures}, file, indent=2)
            file.write("\n")
    sys.exit(1 if worse and not options.write else 0)


if __name__ == "__main__":
    main()
