# With websockets for Python.
import asyncio

from websockets.asyncio.client import connect


async def main():
    async with connect("ws://127.0.0.1:3001/agents/grok/socket") as websocket:
        await websocket.send("hello")
        print(await websocket.recv())

asyncio.run(main())
