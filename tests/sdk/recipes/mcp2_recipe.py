# With version 2 of the Python SDK.
import asyncio

from mcp.client import Client


async def main():
    async with Client("http://127.0.0.1:3001/agents/grok/mcp") as client:
        print((await client.call_tool("name", {})).content[0].text)

asyncio.run(main())
