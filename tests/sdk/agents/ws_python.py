"""An agent on the websockets library."""

import asyncio
import os

from websockets.asyncio.server import serve


async def echo(websocket):
    async for text in websocket:
        await websocket.send(f"grok: {text}")


async def main():
    async with serve(echo, "127.0.0.1", int(os.environ["PORT"])) as server:
        await server.serve_forever()

asyncio.run(main())
