#!/usr/bin/env python3
"""Three nodes that joined by invitation, 200 requests a second between them and 20 event streams, while everything about
trust changes: a fourth node joins, all leaves are renewed over the mesh, root and intermediate are replaced, the CA's
process is killed, and the fourth node is revoked. Ends with 1 if a request failed or a stream broke but for those of the
revoked node, if that one was let in two heartbeats later, or if anything did not come about. Takes four minutes.

MESH_BIN: the folder of the programs (target/debug)."""
import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "faults"))
from leaf import age  # noqa: E402

BIN = pathlib.Path(os.environ.get("MESH_BIN", "target/debug")).resolve()
HEARTBEAT = 2.0
NODES = {"ct110": "127.0.61.1", "ct111": "127.0.61.2", "ct112": "127.0.61.3", "ct113": "127.0.61.4"}
FIRST = ["ct110", "ct111", "ct112"]
CA_IP = "127.0.61.9"
# After its chain has changed, the CA renews nothing for two minutes.
SPREAD = 125

began = time.time()
folder = pathlib.Path(tempfile.mkdtemp(prefix="mesh-trust-"))
ca_folder, root_folder, socket = folder / "ca", folder / "root", folder / "ca.sock"
running, joined, requests, failures, broken, wrong = [], [], [0], [], [], []


def run(*arguments):
    done = subprocess.run([BIN / arguments[0], *map(str, arguments[1:])], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stdout}{done.stderr}")
    return done.stdout


def start(name, *arguments):
    with open(folder / f"{name}.log", "ab") as log:
        process = subprocess.Popen([BIN / arguments[0], *map(str, arguments[1:])], stdout=log, stderr=log)
    running.append(process)
    return process


def ca(*arguments):
    return run("meshctl", "ca", "--dir", ca_folder, *arguments)


def serve():
    return start("ca", "meshctl", "ca", "--dir", ca_folder, "serve", "--listen", f"{CA_IP}:3005", "--address",
                 f"{CA_IP}:3005", "--socket", socket, "--socket-group", "root", "--config", folder / "ct110/mesh.yaml")


def join(node):
    ip, own = NODES[node], folder / node
    (own / "registry").mkdir(parents=True)
    token = run("meshctl", "invite", node, "--dir", ca_folder, "--san", ip, "--agents", "opus").split()[-1]
    arguments = ["join", token, "--no-start", "--config", own / "mesh.yaml", "--state-dir", own / "state",
                 "--user", "root", "--group", "root"]
    if node == "ct110":
        arguments += ["--ca-socket", socket]
    for setting in [f"mesh.advertise_host={ip}", f"mesh.storage_dir={own}/registry", f"proxy.ca_socket={socket}",
                    f"mesh.heartbeat_interval_ms={int(HEARTBEAT * 1000)}", "mesh.stale_threshold_ms=8000",
                    f"proxy.inbound.address={ip}", f"proxy.outbound.listen={ip}:3001", f"proxy.backend.address={ip}:8080",
                    f"registryd.socket={own}/registryd.sock"]:
        arguments += ["--set", setting]
    run("meshctl", *arguments)
    start(f"{node}-registryd", "registryd", "--config", own / "mesh.yaml")
    start(f"{node}-proxy", "mesh-proxy", "--config", own / "mesh.yaml")
    joined.append(node)


async def agent(ip):
    async def serve_one(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"content-length: 2" in head:
                    await reader.readexactly(2)
                if b"/stream" not in head:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    await writer.drain()
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"9\r\ndata: x\n\n\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.5)
        # Cancelled at the end of it all.
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()

    await asyncio.start_server(serve_one, ip, 8080)


async def calls(caller, called, each):
    """One request after the other, one each so many seconds."""
    reader = writer = None
    due = time.time()
    while True:
        due += each
        await asyncio.sleep(max(0, due - time.time()))
        requests[0] += 1
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(NODES[caller], 3001)
            writer.write(f"POST /nodes/{called}/api/message HTTP/1.1\r\nhost: {NODES[caller]}:3001\r\n"
                         "content-length: 2\r\n\r\n{}".encode())
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).lower()
            length = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(length[0])
            if not head.startswith(b"http/1.1 200"):
                failures.append((time.time(), caller, called, body[:200]))
            if b"connection: close" in head:
                writer.close()
                writer = None
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            failures.append((time.time(), caller, called, repr(error)))
            writer = None


async def stream(caller, called):
    try:
        reader, writer = await asyncio.open_connection(NODES[caller], 3001)
        writer.write(f"GET /nodes/{called}/stream HTTP/1.1\r\nhost: {NODES[caller]}:3001\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 200") and await asyncio.wait_for(reader.read(4096), 20):
            pass
        broken.append((caller, called, "ended"))
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        broken.append((caller, called, repr(error)))


def say(text):
    print(f"[{time.time() - began:6.1f} s] {text}: {requests[0]} requests, {len(failures)} failed, {len(broken)} of 20 "
          "streams broken", flush=True)


async def until(what, holds, limit=60):
    asked = time.time()
    while time.time() - asked < limit:
        try:
            if await asyncio.to_thread(holds):
                return say(f"{what} after {time.time() - asked:.1f} s")
        except (OSError, ValueError):
            pass
        await asyncio.sleep(0.2)
    wrong.append(f"not within {limit} s: {what}")
    say(wrong[-1])


def all_are_known():
    for node in joined:
        with urllib.request.urlopen(f"http://{NODES[node]}:3001/mesh/nodes", timeout=3) as answer:
            known = json.load(answer)
        if sum(each["status"] == "online" for each in known) < len(joined):
            return False
    return True


def certificate(node):
    return (folder / node / "state/tls/current/node.crt").read_text()


def chain_is_everywhere():
    of_ca = (ca_folder / "intermediate/ca-chain.pem").read_text().split()
    return all(sorted((folder / node / "state/tls/ca-chain.pem").read_text().split()) == sorted(of_ca) for node in joined)


def age_leaf(node):
    names = f"DNS:{node}.mesh, IP:{NODES[node]}, URI:spiffe://mesh/node/{node}, URI:spiffe://mesh/agent/opus@{node}"
    age((folder / node / "state/tls/current").resolve(), ca_folder, (node, names), 5, 40)


async def renew_all(what):
    for node in FIRST:
        age_leaf(node)
    aged = {node: certificate(node) for node in FIRST}
    await until(what, lambda: all(certificate(node) != aged[node] for node in FIRST), 60)
    await asyncio.sleep(2 * HEARTBEAT)


def is_refused_both_ways():
    last = {(caller, called) for at, caller, called, _ in failures if at > time.time() - 1.5}
    return {("ct113", "ct111"), ("ct111", "ct113")} <= last


def connections_of_revoked():
    held = subprocess.run(["ss", "-Htn", "state", "established"], capture_output=True, text=True, check=True).stdout
    ends = [line.split()[2:4] for line in held.splitlines()]
    return [pair for pair in ends if any(NODES["ct113"] + ":" in end for end in pair)
            and any(f"{NODES[node]}:3000" in end or f"{NODES['ct113']}:3000" in end for node in FIRST for end in pair)]


async def soak():
    ca("init", "--root-dir", root_folder)
    process = serve()
    await until("the CA's process runs", socket.exists)
    for ip in NODES.values():
        await agent(ip)
    for node in FIRST:
        await asyncio.to_thread(join, node)
        await until(f"{node} is known", all_are_known)
    pairs = [(caller, called) for caller in FIRST for called in FIRST if caller != called]
    load = [asyncio.create_task(calls(*pair, len(pairs) * 4 / 200)) for pair in pairs for _ in range(4)]
    load += [asyncio.create_task(stream(*pairs[number % len(pairs)])) for number in range(20)]
    await asyncio.sleep(5)

    await asyncio.to_thread(join, "ct113")
    await until("ct113 has joined", all_are_known)
    load += [asyncio.create_task(calls(*pair, 0.2)) for pair in [("ct113", "ct111"), ("ct111", "ct113")]]
    await renew_all("all are renewed")
    await asyncio.to_thread(ca, "renew-root", "--root-dir", root_folder)
    await until("all know the new root", chain_is_everywhere)
    await asyncio.to_thread(ca, "renew-intermediate", "--root-dir", root_folder)
    await until("all know the new intermediate", chain_is_everywhere)
    await asyncio.sleep(SPREAD)
    await renew_all("all are renewed by the new intermediate")
    process.send_signal(signal.SIGKILL)
    process.wait()
    socket.unlink()
    await asyncio.to_thread(ca, "verify")
    process = serve()
    await until("the CA's process runs again", socket.exists)

    await asyncio.to_thread(ca, "revoke", "ct113", "--json")
    await until("ct113 is refused both ways", is_refused_both_ways, 2 * HEARTBEAT)
    if held := connections_of_revoked():
        wrong.append(f"connections of the revoked node are still open: {held}")
    await asyncio.sleep(5)
    for task in load:
        task.cancel()
    say("the end")
    others = [failure for failure in failures if "ct113" not in failure[1:3]]
    if others or broken:
        wrong.append(f"failed: {others[:5]}, broken: {broken[:5]}")


try:
    asyncio.run(soak())
finally:
    for process in running:
        process.terminate()
    for process in running:
        process.wait()
if wrong:
    sys.exit("\n".join(wrong) + f"\nthe logs are in {folder}")
