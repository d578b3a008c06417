"""Version 1 of the Python SDK; with "sse" over the older transport."""

import asyncio
import contextlib
import sys
import time

import httpx
from driver import check, expect, main, spread
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client


@contextlib.asynccontextmanager
async def session(way):
    if "sse" in sys.argv:
        transport = sse_client(way["url"] + "/sse", headers=way["headers"])
    else:
        socket = httpx.AsyncHTTPTransport(uds=way["unix"]) if way["unix"] else None
        client = httpx.AsyncClient(headers=way["headers"], transport=socket, timeout=10)
        transport = streamable_http_client(way["url"] + "/mcp", http_client=client)
    async with transport as (reader, writer, *_), ClientSession(reader, writer) as opened:
        await opened.initialize()
        yield opened


@check
def tool(way):
    async def run():
        async with session(way) as opened:
            listed = [tool.name for tool in (await opened.list_tools()).tools]
            expect(sorted(listed) == ["count", "name"], f"the tools are {listed}")
            result = await opened.call_tool("name", {})
            expect(result.content[0].text == "grok", f"the result is {result}")
    asyncio.run(run())


@check
def progress(way):
    arrivals = []

    async def came(*_):
        arrivals.append(time.monotonic())

    async def run():
        async with session(way) as opened:
            result = await opened.call_tool("count", {}, progress_callback=came)
            expect(result.content[0].text == "counted", f"the result is {result}")
    asyncio.run(run())
    spread(arrivals)


main()
