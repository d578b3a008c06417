import asyncio

import aiohttp
from driver import check, expect, main


@check
def echo(way):
    async def run():
        connector = aiohttp.UnixConnector(way["unix"]) if way["unix"] else None
        async with aiohttp.ClientSession(headers=way["headers"], connector=connector, trust_env=True) as session:
            async with session.ws_connect(way["url"] + "/socket") as opened:
                await opened.send_str("hello")
                return await opened.receive_str(timeout=5)
    got = asyncio.run(run())
    expect(got == "grok: hello", f"the answer is {got!r}")


main()
