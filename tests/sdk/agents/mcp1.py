"""An MCP server on version 1 of the Python SDK: by itself, on the older SSE transport, or mounted in FastAPI."""

import contextlib
import os
import sys

from mcp.server.fastmcp import Context, FastMCP
from mcp_tools import add_tools

how, port = sys.argv[1], int(os.environ["PORT"])

path = "/" if how == "mounted" else "/mcp"
server = FastMCP("grok", port=port, log_level="WARNING", streamable_http_path=path)
add_tools(server, Context)

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
