import asyncio

import aiohttp
from driver import http_checks, main


def connect(way):
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete

    async def open_session():
        connector = aiohttp.UnixConnector(way["unix"]) if way["unix"] else None
        timeout = aiohttp.ClientTimeout(10)
        # With trust_env it looks at http_proxy and no_proxy.
        return aiohttp.ClientSession(headers=way["headers"], connector=connector, timeout=timeout, trust_env=True)

    session = run(open_session())

    def ask(method, path, body=None):
        answer = run(session.request(method, way["url"] + path, data=body))

        def pieces():
            while piece := run(answer.content.readany()):
                yield piece
        return answer.status, pieces()
    return ask


http_checks(connect)
main()
