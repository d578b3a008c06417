"""An MCP server on version 1 of the Python SDK: by itself, on the older SSE transport, mounted in FastAPI, or resumable."""

import contextlib
import os
import sys

from mcp.server.fastmcp import Context, FastMCP
from mcp.server.streamable_http import EventMessage, EventStore
from mcp_tools import add_tools

how, port = sys.argv[1], int(os.environ["PORT"])


class Events(EventStore):
    """Keeps what was sent, so that a client whose connection broke gets the rest."""

    def __init__(self):
        self.sent = []

    async def store_event(self, stream_id, message):
        self.sent.append((stream_id, message))
        return str(len(self.sent))

    async def replay_events_after(self, last_event_id, send_callback):
        seen = int(last_event_id)
        stream = self.sent[seen - 1][0]
        for number, (its, message) in enumerate(self.sent[seen:], seen + 1):
            if its == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


# Clients try twice to come back; a sidecar on a busy machine is up again by the second time.
resumable = {"event_store": Events(), "retry_interval": 1500} if how == "resumable" else {}
path = "/" if how == "mounted" else "/mcp"
server = FastMCP("grok", port=port, log_level="WARNING", streamable_http_path=path, **resumable)
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
    server.run(transport="sse" if how == "sse" else "streamable-http")
