"""The checks of the Python MCP clients, whichever version of the SDK they are on."""

import asyncio
import time

from driver import check, expect, spread


def mcp_checks(session):
    """`session(way)` is an async context manager of an initialized session."""

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
