"""The tools of the Python MCP servers, whichever version of the SDK they are on."""

import asyncio


def add_tools(server, context_type):
    @server.tool()
    def name() -> str:
        return "grok"

    @server.tool()
    async def count(context: context_type) -> str:
        for number in range(3):
            await context.report_progress(number, 3)
            await asyncio.sleep(0.2)
        return "counted"
