"""An MCP server on version 1 of the Python SDK: by itself, on the older SSE transport, or mounted in FastAPI."""

import asyncio
import contextlib
import os
import sys

from mcp.server.fastmcp import Context, FastMCP

how, port = sys.argv[1], int(os.environ["PORT"])
server = FastMCP("grok", port=port, log_level="WARNING", streamable_http_path="/" if how == "mounted" else "/mcp")


@server.tool()
def name() -> str:
    return "grok"


@server.tool()
async def count(context: Context) -> str:
    for number in range(3):
        await context.report_progress(number, 3)
        await asyncio.sleep(0.2)
    return "counted"


if how == "mounted":
    import uvicorn
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with server.session_manager.run():
            yield

    mounted = server.streamable_http_app()
    app = FastAPI(lifespan=lifespan)
    # Clients that ask for /mcp are redirected to /mcp/.
    app.mount("/mcp", mounted)
    uvicorn.run(app, port=port, log_level="warning")
else:
    server.run(transport=how)
