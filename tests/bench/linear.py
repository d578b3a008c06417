#!/usr/bin/env python3
"""Whether cost grows linearly: connections, bodies, event streams and peers, beside other pairs of sidecars in one run.

    tests/bench/linear.py --bench ../shared/bench --adapter tests/bench/mesh.py --peers haproxy,haproxy_h2,nginx,mesh

The pairs and their loads are those of the side-by-side bench (README.md here); each load goes to all pairs one after the other, so
that what the machine does meanwhile hits them alike. What it has no load for is made here: event
streams, and a sidecar that calls many peers, which is measured for this repository's sidecars only. Prints tables; takes
about a minute for each pair.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile

from counts import HERE, Mesh

CONNECTIONS = (1, 8, 64, 512, 2048)
BODIES = {"200 B": 200, "16 KiB": 16 << 10, "1 MiB": 1 << 20, "1 GiB": 1 << 30}
PEERS = (1, 10, 100)
STREAMS, EVENTS_PER_SECOND = 1000, 10
EVENT = b"data: {\"token\": \"word\"}\n\n"


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Table:
    """One line for each load, one column for each pair."""

    def __init__(self, title, columns):
        self.title, self.columns, self.rows = title, columns, {}

    def add(self, row, column, text):
        self.rows.setdefault(row, {})[column] = text

    def show(self):
        print(f"\n{self.title}\n\n| | {' | '.join(self.columns)} |\n|---|{'---|' * len(self.columns)}")
        for row, cells in self.rows.items():
            print(f"| {row} | {' | '.join(cells.get(column, '–') for column in self.columns)} |")
        sys.stdout.flush()


def cpu_seconds(peer):
    """Of both sidecars, so far."""
    from benchlib import procs
    return procs.cpu_seconds([pid for side in peer.trees() for pid in side])


def measured(peer, run):
    """What a load counts, and the CPU seconds of both sidecars meanwhile."""
    before = cpu_seconds(peer)
    outcome = run()
    return outcome, cpu_seconds(peer) - before


def connections(bench, table, seconds):
    script = os.path.join(bench.here, "loadtool", "post.lua")
    for count, peer in itertools.product(CONNECTIONS, bench.peers):
        command = ["wrk", "-t1", f"-c{count}", f"-d{seconds}s", "--timeout", "10s", "-s", script,
                   f"http://127.0.0.1:{peer.port}/api/message"]

        def run():
            out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 30).stdout
            return json.loads([line for line in out.splitlines() if line.startswith("WRKJSON ")][-1][8:])
        result, cpu = measured(peer, run)
        failed = f", {result['errors']} failed" if result["errors"] else ""
        if not result["count"]:
            table.add(f"{count}", peer.name, "none answered")
            continue
        table.add(f"{count}", peer.name,
                  f"{result['count'] / result['secs']:.0f}/s, {cpu / result['count'] * 1e6:.0f} µs{failed}")


def bodies(bench, table, seconds):
    for way, (name, size), peer in itertools.product(("down", "up"), BODIES.items(), bench.peers):
        path = f"/body-{size}" if way == "down" else "/api/upload"
        command = [bench.loadtool, "xfer", "--port", str(peer.port), "--secs", str(seconds), "--conns", "2",
                   "--dir", way, "--size", str(size), "--path", path]

        def run():
            out = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
            try:
                return json.loads(out.stdout.splitlines()[-1])
            except (IndexError, ValueError):
                return None
        result, cpu = measured(peer, run)
        if not result or not result.get("count"):
            table.add(f"{name} {way}", peer.name, "failed")
            continue
        each = cpu / result["count"]
        text = f"{each * 1e6:.0f} µs" if size < 1 << 20 else f"{each * (1 << 30) / size:.2f} s/GiB"
        table.add(f"{name} {way}", peer.name, text)


async def events_server(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
            await writer.drain()
            await asyncio.sleep(1 / EVENTS_PER_SECOND)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def streams(peer, seconds):
    """Opens the streams, then counts what comes of them; the number of events and the CPU seconds."""
    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
        writer.write(b"GET /events HTTP/1.1\r\nhost: ct110.mesh\r\naccept: text/event-stream\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"data: "), 30)
        return reader, writer
    opened = []
    for begin in range(0, STREAMS, 50):
        opened += await asyncio.gather(*(one() for _ in range(begin, min(begin + 50, STREAMS))))
    seen = 0

    async def read(reader):
        nonlocal seen
        while piece := await reader.read(65536):
            seen += piece.count(b"data: ")
    readers = [asyncio.create_task(read(reader)) for reader, _ in opened]
    await asyncio.sleep(1)
    before, cpu = seen, cpu_seconds(peer)
    await asyncio.sleep(seconds)
    events, cpu = seen - before, cpu_seconds(peer) - cpu
    for task in readers:
        task.cancel()
    for _, writer in opened:
        writer.close()
    return events, cpu


def event_streams(bench, peer, table, seconds):
    server = subprocess.Popen([sys.executable, "-B", os.path.realpath(__file__), "--serve-events"],
                              stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        peer.start(tweak=lambda ctx: setattr(ctx, "backend_port", port), ready=False)
        events, cpu = asyncio.run(streams(peer, seconds))
        expected = STREAMS * EVENTS_PER_SECOND * seconds
        table.add(f"{STREAMS} × {EVENTS_PER_SECOND}/s", peer.name,
                  f"{cpu / events * 1e6:.0f} µs an event, {100 * events / expected:.0f} % in time" if events else "failed")
    except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
        table.add(f"{STREAMS} × {EVENTS_PER_SECOND}/s", peer.name, f"failed: {type(error).__name__}")
    finally:
        peer.stop()
        server.kill()
        server.wait()


async def serve_events():
    server = await asyncio.start_server(events_server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def many_peers(programs, backend_port, table, seconds):
    """One sidecar that calls so many nodes in turn, each with a sidecar of its own."""
    from benchlib import procs
    for count in PEERS:
        with tempfile.TemporaryDirectory(prefix="mesh-linear-") as folder:
            names = [f"ct{200 + number}" for number in range(count)]
            mesh = Mesh(folder, programs, called=names, backend=backend_port)
            try:
                pids = [mesh.start(name).pid for name in ["ct110", *names]]
                for name in names:
                    asyncio.run(mesh.warm(1, 1, name))
                script = os.path.join(folder, "many.lua")
                with open(script, "w") as file:
                    file.write(
                        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
                        'wrk.body = string.rep("x", 200)\nlocal number = 0\n'
                        f'request = function()\n  number = (number + 1) % {count}\n'
                        '  return wrk.format(nil, "/nodes/ct" .. (200 + number) .. "/api/message")\nend\n'
                        'done = function(summary)\n  local e = summary.errors\n  io.write(string.format("COUNT %d %d\\n", '
                        'summary.requests, e.connect + e.read + e.write + e.status + e.timeout))\nend\n')
                before = procs.cpu_seconds(pids)
                out = subprocess.run(["wrk", "-t1", "-c64", f"-d{seconds}s", "-s", script, f"http://127.0.0.1:{mesh.outbound}/"],
                                     check=True, capture_output=True, text=True, timeout=seconds + 30).stdout
                cpu = procs.cpu_seconds(pids) - before
                requests, failed = map(int, out.split("COUNT ")[1].split())
                failed = f", {failed} failed" if failed else ""
                table.add(f"{count}", "mesh", f"{requests / seconds:.0f}/s, {cpu / requests * 1e6:.0f} µs{failed}")
            finally:
                mesh.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="folder of the side-by-side bench")
    parser.add_argument("--adapter", action="append", default=[], help="as in the side-by-side bench")
    parser.add_argument("--peers", default="haproxy,haproxy_h2,nginx,mesh")
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--serve-events", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve_events:
        return asyncio.run(serve_events())
    if not options.bench:
        parser.error("--bench is missing")
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.realpath(options.bench))
    side_by_side = load(os.path.join(options.bench, "bench.py"), "bench")
    names = options.peers.split(",")
    bench = side_by_side.Bench(argparse.Namespace(adapter=options.adapter, pin=False, port_base=21000, baseline="haproxy"))
    bench.here = os.path.realpath(options.bench)
    by_connections = Table("Requests/s and CPU of both sidecars for one, with so many connections of 200 B requests", names)
    by_body = Table("CPU of both sidecars for a body, two connections", names)
    by_stream = Table("Event streams", names)
    by_peer = Table("One sidecar that calls so many peers, 64 connections", ["mesh"])
    try:
        bench.setup(names, strict=True)
        www = os.path.join(bench.work, "backend", "www")
        for size in BODIES.values():
            with open(os.path.join(www, f"body-{size}"), "wb") as file:
                file.truncate(size)
        for peer in bench.peers:
            peer.start()
        connections(bench, by_connections, options.seconds)
        bodies(bench, by_body, options.seconds)
        for peer in bench.peers:
            peer.stop()
        by_connections.show()
        by_body.show()
        for peer in bench.peers:
            event_streams(bench, peer, by_stream, 5)
        by_stream.show()
        programs = os.path.dirname(os.environ.get("MESH_PROXY_BIN", ""))
        if os.path.exists(os.path.join(programs, "meshctl")):
            many_peers(programs, bench.port_base, by_peer, options.seconds)
            by_peer.show()
    finally:
        bench.teardown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
