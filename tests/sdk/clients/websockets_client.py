"""The websockets library: asyncio, or with "sync" its threads."""

import asyncio
import sys

from driver import check, expect, main
from websockets.asyncio.client import connect, unix_connect
from websockets.sync import client as sync


@check
def echo(way):
    url = way["url"].replace("http:", "ws:") + "/socket"
    options = {"additional_headers": way["headers"], "open_timeout": 10}
    if "sync" in sys.argv:
        with sync.unix_connect(way["unix"], url, **options) if way["unix"] else sync.connect(url, **options) as opened:
            opened.send("hello")
            got = opened.recv(timeout=5)
    else:
        async def run():
            connection = unix_connect(way["unix"], url, **options) if way["unix"] else connect(url, **options)
            async with connection as opened:
                await opened.send("hello")
                return await asyncio.wait_for(opened.recv(), 5)
        got = asyncio.run(run())
    expect(got == "grok: hello", f"the answer is {got!r}")


main()
