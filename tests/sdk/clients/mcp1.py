"""Version 1 of the Python SDK; with "sse" over the older transport. Run by itself, or for its `session`."""

import contextlib
import sys

import httpx
from driver import main
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_checks import mcp_checks


@contextlib.asynccontextmanager
async def session(way, answered=()):
    """A session; `answered` are functions that are called with each answer's head."""
    if "sse" in sys.argv:
        transport = sse_client(way["url"] + "/sse", headers=way["headers"])
    else:
        socket = httpx.AsyncHTTPTransport(uds=way["unix"]) if way["unix"] else None
        hooks = {"response": list(answered)}
        client = httpx.AsyncClient(headers=way["headers"], transport=socket, timeout=10, event_hooks=hooks)
        transport = streamable_http_client(way["url"] + "/mcp", http_client=client)
    async with transport as (reader, writer, *_), ClientSession(reader, writer) as opened:
        await opened.initialize()
        yield opened


if __name__ == "__main__":
    mcp_checks(session)
    main()
