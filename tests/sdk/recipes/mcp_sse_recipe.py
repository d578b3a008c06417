# The older SSE transport names its endpoint as a path, so that a prefix would be lost: give the agent a listener of its own
# (`proxy.outbound.listeners: [{listen: 127.0.0.1:3111, agent: grok}]`), or name it by header.
import asyncio

from mcp import ClientSession
from mcp.client.sse import sse_client


async def main():
    async with sse_client("http://127.0.0.1:3111/sse") as (reader, writer), ClientSession(reader, writer) as session:
        await session.initialize()
        print((await session.call_tool("name", {})).content[0].text)

asyncio.run(main())
