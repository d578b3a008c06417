#!/usr/bin/env python3
"""Loads two sidecars in the ways in which they are used most, for a compiler that has asked them to count what runs.

    tests/bench/train.py --bin DIR      DIR holds mesh-proxy and meshctl

deploy/release.sh calls this. What the programs count they write themselves when they end, as they were told when they
were built; Landlock is off, since the files lie outside the folders that a sidecar may write to.
"""

import argparse
import asyncio
import os
import socket
import ssl
import tempfile

from counts import ANSWER, BODY, Mesh, SIDES

# Small next to what is answered with it, since Python is at both ends.
PIECE = os.urandom(64 * 1024)
BIG_BYTES = 64 * 1024 * 1024
EVENTS = 100


class NotAnswered(Exception):
    """An answer that is not the agent's, or none."""


async def drop_body(reader, head):
    """Reads and drops the body that comes after this head."""
    left = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                   if line.startswith(b"content-length:")), 0)
    while left:
        piece = await reader.read(min(left, 1 << 20))
        if not piece:
            raise NotAnswered("the connection broke off")
        left -= len(piece)


async def agent(reader, writer):
    """Answers as an agent does: with JSON, with events one by one, or with much at once."""
    def head(*lines):
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    try:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            await drop_body(reader, request)
            path = request.split(b" ", 2)[1]
            if path == b"/events":
                head(b"content-type: text/event-stream", b"transfer-encoding: chunked")
                for number in range(EVENTS):
                    event = b"data: {\"token\": %d}\n\n" % number
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(0.001)
                writer.write(b"0\r\n\r\n")
            elif path == b"/big":
                head(b"content-type: application/octet-stream", b"content-length: %d" % BIG_BYTES)
                for _ in range(BIG_BYTES // len(PIECE)):
                    writer.write(PIECE)
                    await writer.drain()
            else:
                head(b"content-type: application/json", b"content-length: %d" % len(ANSWER))
                writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def answered(reader, head):
    """Reads an answer's body to its end."""
    if not head.startswith(b"HTTP/1.1 200"):
        raise NotAnswered(head.decode())
    if b"transfer-encoding: chunked" in head.lower():
        while (size := int(await reader.readline(), 16)):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await drop_body(reader, head)


async def calls(port, connections, requests, method="POST", path="/api/message", body=BODY, between=0.0):
    """So many calls of one program, on so many connections."""
    begin = (f"{method} /nodes/ct111{path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
             f"content-length: {len(body)}\r\n\r\n").encode()

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        for _ in range(requests // connections):
            writer.write(begin + body)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            await answered(reader, head)
            await asyncio.sleep(between)
        writer.close()
    await asyncio.gather(*(one() for _ in range(connections)))


async def handshakes(mesh, port, count):
    """Peers that connect, ask and leave, half of them with a session of before."""
    context = ssl.create_default_context(cafile=os.path.join(mesh.ca, "intermediate", "ca-chain.pem"))
    issued = os.path.join(mesh.ca, "issued", "ct110")
    context.load_cert_chain(issued + ".crt", issued + ".key")

    def one(session):
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            with context.wrap_socket(plain, server_hostname="ct111.mesh", session=session) as tls:
                tls.sendall(b"GET /api/mesh/ping HTTP/1.1\r\nhost: ct111.mesh\r\n\r\n")
                if not tls.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise NotAnswered("a peer")
                return tls.session
    for _ in range(count):
        session = await asyncio.to_thread(one, None)
        await asyncio.to_thread(one, session)


async def main(programs):
    with tempfile.TemporaryDirectory(prefix="mesh-train-") as folder:
        mesh = Mesh(folder, programs, landlock=False)
        server = await asyncio.start_server(agent, "127.0.0.1", mesh.backend, limit=1 << 20)
        async with server:
            try:
                for name in SIDES.values():
                    mesh.start(name)
                port = mesh.outbound
                await mesh.warm(1, 10)
                await calls(port, 1, 1000, between=0.002)
                await calls(port, 8, 4000, between=0.004)
                await calls(port, 64, 24_000)
                await calls(port, 32, 64, "GET", "/events", b"")
                await calls(port, 2, 6, "GET", "/big", b"")
                await calls(port, 2, 6, "POST", "/upload", PIECE * 64)
                await handshakes(mesh, mesh.inbound["ct111"], 400)
            finally:
                mesh.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    asyncio.run(main(parser.parse_args().bin))
