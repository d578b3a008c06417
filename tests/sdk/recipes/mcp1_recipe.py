# With version 1 of the Python SDK. The server needs no settings: the sidecar sends it a Host header that it accepts from local clients.
import asyncio

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


async def main():
    async with streamable_http_client("http://127.0.0.1:3001/agents/grok/mcp") as (reader, writer, _):
        async with ClientSession(reader, writer) as session:
            await session.initialize()
            print((await session.call_tool("name", {})).content[0].text)

asyncio.run(main())
