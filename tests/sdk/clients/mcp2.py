"""Version 2 of the Python SDK."""

import asyncio
import time

import httpx2
from driver import check, expect, main, spread
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client


def client(way):
    socket = httpx2.AsyncHTTPTransport(uds=way["unix"]) if way["unix"] else None
    http_client = httpx2.AsyncClient(headers=way["headers"], transport=socket, timeout=10)
    return Client(streamable_http_client(way["url"] + "/mcp", http_client=http_client))


@check
def tool(way):
    async def run():
        async with client(way) as opened:
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
        async with client(way) as opened:
            result = await opened.call_tool("count", {}, progress_callback=came)
            expect(result.content[0].text == "counted", f"the result is {result}")
    asyncio.run(run())
    spread(arrivals)


main()
