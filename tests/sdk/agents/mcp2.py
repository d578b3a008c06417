"""An MCP server on version 2 of the Python SDK."""

import asyncio
import os

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("grok", log_level="WARNING")


@server.tool()
def name() -> str:
    return "grok"


@server.tool()
async def count(context: Context) -> str:
    for number in range(3):
        await context.report_progress(number, 3)
        await asyncio.sleep(0.2)
    return "counted"


server.run(transport="streamable-http", port=int(os.environ["PORT"]))
