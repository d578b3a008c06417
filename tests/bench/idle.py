#!/usr/bin/env python3
"""What idle connections of peers cost a sidecar, and what is left of a burst on all of them.

    tests/bench/idle.py                          5,000 connections of 50 peers, HTTP/1.1
    tests/bench/idle.py --protocol h2            the same, HTTP/2
    tests/bench/idle.py --connections 500 --peers 5 --bin target/debug

Each connection does one request and waits. Then all of them send a few requests at once. The exit status is 1 where one fails, or
where the memory is not back at its idle value (within a tenth) a minute after the burst. Needs the programs as deploy/release.sh
makes them, or those in the folder that --bin names.
"""

import argparse
import asyncio
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import time

from counts import BODY, HERE, Mesh, agent, message

REQUESTS = 3
AT_ONCE = 50
BACK_WITHIN = 60
# The sidecar's memory allocator gives back what is free after some seconds.
SETTLED = 15


class Http1:
    """A request and its answer on a connection of HTTP/1.1."""

    ALPN = "http/1.1"

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def begin(self):
        pass

    async def exchange(self):
        self.writer.write(b"POST /api/message HTTP/1.1\r\nhost: ct111.mesh\r\ncontent-type: application/json\r\n"
                          b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        head = await message(self.reader)
        return head.startswith(b"HTTP/1.1 200")


class Http2:
    """The same of HTTP/2, as far as it is needed here (RFC 9113): every answer is short."""

    ALPN = "h2"
    HEADERS, SETTINGS, PING, ACK = 1, 4, 6, 1

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.stream, self.answer, self.reads = -1, None, None

    def frame(self, kind, flags, stream, payload=b""):
        self.writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload)

    def begin(self):
        self.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.frame(self.SETTINGS, 0, 0)
        self.reads = asyncio.create_task(self.read())

    async def read(self):
        """Takes what comes, and answers pings also while no request is under way."""
        good = False
        try:
            while True:
                header = await self.reader.readexactly(9)
                kind, flags, stream = header[3], header[4], int.from_bytes(header[5:], "big")
                payload = await self.reader.readexactly(int.from_bytes(header[:3], "big"))
                if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                    self.frame(kind, self.ACK, 0, payload if kind == self.PING else b"")
                elif stream == self.stream:
                    # 200 is entry 8 of the table. What resets the stream ends it.
                    good |= kind == self.HEADERS and payload[:1] == b"\x88"
                    if kind == 3 or (flags & 1 and kind < 2):
                        self.answer.set_result(good)
                        good = False
        except (asyncio.IncompleteReadError, OSError) as error:
            if self.answer and not self.answer.done():
                self.answer.set_exception(error)

    async def exchange(self):
        def literal(index, text):
            return bytes([index, len(text)]) + text
        self.stream += 2
        self.answer = asyncio.get_running_loop().create_future()
        # POST, https, then :path, :authority and content-type by their index in HPACK's table (RFC 7541, appendix A).
        head = (b"\x83\x87" + literal(4, b"/api/message") + literal(1, b"ct111.mesh")
                + b"\x0f\x10" + literal(16, b"application/json")[1:])
        self.frame(self.HEADERS, 4, self.stream, head)
        self.frame(0, 1, self.stream, BODY)
        return await self.answer


def resident_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


async def measure(mesh, sidecar, peers, count, protocol):
    contexts = []
    for peer in peers:
        context = ssl.create_default_context(cafile=os.path.join(mesh.ca, "intermediate/ca-chain.pem"))
        context.load_cert_chain(os.path.join(mesh.ca, f"issued/{peer}.crt"), os.path.join(mesh.ca, f"issued/{peer}.key"))
        context.set_alpn_protocols([protocol.ALPN])
        contexts.append(context)
    gate = asyncio.Semaphore(AT_ONCE)

    async def open_one(number):
        async with gate:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", mesh.inbound["ct111"], ssl=contexts[number % len(contexts)], server_hostname="ct111.mesh")
            connection = protocol(reader, writer)
            connection.begin()
            return connection, await asyncio.wait_for(connection.exchange(), 30)

    # What the first requests make once is not of the connections.
    warm, _ = await open_one(0)
    await asyncio.sleep(2)
    empty = resident_kib(sidecar.pid)
    opened = await asyncio.gather(*(open_one(number) for number in range(count)))
    connections, failed = [connection for connection, _ in opened], sum(not good for _, good in opened)
    await asyncio.sleep(1)
    at_once = resident_kib(sidecar.pid)
    await asyncio.sleep(SETTLED)
    idle = resident_kib(sidecar.pid)
    print(f"{count} idle connections of {len(peers)} peers ({protocol.ALPN}): {failed} failed, {(at_once - empty) / count:.1f} KiB "
          f"each at once, {(idle - empty) / count:.1f} KiB after {SETTLED} s; the sidecar without them {empty / 1024:.1f} MiB")

    times = []

    async def burst(connection):
        good = True
        for _ in range(REQUESTS):
            begun = time.monotonic()
            good &= await asyncio.wait_for(connection.exchange(), 60)
            times.append(time.monotonic() - begun)
        return good
    begun = time.monotonic()
    outcomes = await asyncio.gather(*(burst(connection) for connection in connections), return_exceptions=True)
    took, peak = time.monotonic() - begun, resident_kib(sidecar.pid)
    bad = [outcome for outcome in outcomes if outcome is not True]
    times.sort()
    print(f"a burst of {REQUESTS} requests on each at once: {len(bad)} connections failed{f' ({bad[0]!r})' if bad else ''}; "
          f"{len(times) / took:.0f} requests/s, p99 {times[int(len(times) * 0.99)] if times else 0:.2f} s; {peak / 1024:.1f} MiB then")
    end, back = time.monotonic() + BACK_WITHIN, None
    while back is None and time.monotonic() < end:
        await asyncio.sleep(1)
        now = resident_kib(sidecar.pid)
        if now <= idle * 1.1:
            back = BACK_WITHIN - (end - time.monotonic())
    text = f"after {back:.0f} s" if back is not None else f"not within {BACK_WITHIN} s"
    print(f"back at the idle value of {idle / 1024:.1f} MiB {text}: {now / 1024:.1f} MiB")
    for connection in [warm, *connections]:
        connection.writer.transport.abort()
    return not failed and not bad and back is not None


async def run(options):
    peers = [f"ct{200 + number}" for number in range(options.peers)]
    with tempfile.TemporaryDirectory(prefix="mesh-idle-") as folder:
        # As many connections as are to be had with 20,000 files; what the burst brings at once waits for the agent.
        mesh = Mesh(folder, options.bin, agent=f", max_requests: 1024, max_queue: {2 * options.connections}, queue_ms: 60000",
                    limits=f", max_connections: {options.connections + 100}")
        for peer in peers:
            subprocess.run([os.path.join(options.bin, "meshctl"), "ca", "--dir", mesh.ca, "issue-node", peer],
                           check=True, stdout=subprocess.DEVNULL)
        server = await asyncio.start_server(agent, "127.0.0.1", mesh.backend, backlog=4096)
        async with server:
            sidecar = mesh.start("ct111")
            try:
                await asyncio.sleep(1)
                return await measure(mesh, sidecar, peers, options.connections, {"h1": Http1, "h2": Http2}[options.protocol])
            finally:
                mesh.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(HERE, "../../target/optimised"), help="folder of the programs")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--protocol", choices=["h1", "h2"], default="h1")
    options = parser.parse_args()
    # The sidecar inherits it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return 0 if asyncio.run(run(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
