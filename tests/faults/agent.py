#!/usr/bin/env python3
"""An agent for the tests of faults: it writes each task's number to a file before it does anything else, so that what was done
is known whatever happens to the answer. Arguments: NODE FILE.

POST /api/message with {"message": <number>} is answered after some milliseconds with that number and the node. GET /stream sends
numbered events for twenty seconds."""
import asyncio
import json
import os
import sys

NODE, DONE = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
EVENTS, PAUSE = 100, 0.2


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0])) if lengths else b""
            if b"/stream" in head.split(b"\r\n")[0]:
                await stream(writer)
                continue
            number = json.loads(body)["message"] if body else 0
            os.write(DONE, f"{number}\n".encode())
            # Some are under way at any moment.
            await asyncio.sleep(number % 8 * 0.02)
            answer = json.dumps({"response": number, "agent": NODE, "durationMs": 0}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                         b"content-length: %d\r\n\r\n%s" % (len(answer), answer))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def stream(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for number in range(EVENTS):
        event = b"data: %d\n\n" % number
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(PAUSE)
    writer.write(b"b\r\ndata: end\n\n\r\n0\r\n\r\n")
    await writer.drain()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 8080)
    await server.serve_forever()


asyncio.run(main())
