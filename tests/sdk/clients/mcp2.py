"""Version 2 of the Python SDK."""

import httpx2
from driver import main
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_checks import mcp_checks


def session(way):
    socket = httpx2.AsyncHTTPTransport(uds=way["unix"]) if way["unix"] else None
    http_client = httpx2.AsyncClient(headers=way["headers"], transport=socket, timeout=10)
    return Client(streamable_http_client(way["url"] + "/mcp", http_client=http_client))


mcp_checks(session)
main()
