# The server of the older SSE transport names its endpoint by path alone, so the client would lose the prefix `/agents/grok`. Give
# the agent a listener of its own (`proxy.outbound.listeners: [{listen: 127.0.0.1:3111, agent: grok}]`), or name it in a header.
import asyncio

from mcp import ClientSession
from mcp.client.sse import sse_client


async def main():
    async with sse_client("http://127.0.0.1:3111/sse") as (reader, writer), ClientSession(reader, writer) as session:
        await session.initialize()
        print((await session.call_tool("name", {})).content[0].text)

asyncio.run(main())
