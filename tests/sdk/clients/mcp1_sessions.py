"""What becomes of a session of version 1 of the Python SDK: where its requests go, and when the sidecar is killed."""

import asyncio
import contextlib
import os
import signal

from driver import check, expect, main
from mcp1 import session

CALLS = 20
# That so many sessions are all on one of two nodes happens once in two million times.
SESSIONS = 22


@check
def stays(way):
    """Two nodes host the agent. Each session's calls go to the node that issued it, which alone knows it."""

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            homes = {}
            for _ in range(SESSIONS):
                served = []

                async def answered(response, served=served):
                    served.append(response.headers.get("x-mesh-served-by"))

                opened = await stack.enter_async_context(session(way, [answered]))
                homes[served[0]] = opened, served
                if len(homes) == 2:
                    break
            expect(set(homes) == {"ct111", "ct112"}, f"{SESSIONS} sessions were opened, all on {list(homes)}")
            for _ in range(CALLS):
                for opened, _ in homes.values():
                    result = await opened.call_tool("name", {})
                    expect(result.content and result.content[0].text == "grok", f"the result is {result}")
            for home, (_, served) in homes.items():
                expect(len(served) > CALLS and set(served) == {home}, f"a session of {home} was answered by {set(served)}")

    asyncio.run(run())


@check
def resumes(way):
    """The caller's sidecar is killed while a call is in progress, and comes up again, as systemd has it. The call's
    result arrives, and the session goes on."""
    killed = []

    async def came(*_):
        if not killed:
            with open(way["sidecar"]) as file:
                killed.append(int(file.read()))
            os.kill(killed[0], signal.SIGKILL)

    async def run():
        async with session(way) as opened:
            result = await opened.call_tool("count", {}, progress_callback=came)
            expect(killed, "nothing was heard of the call's progress, so that no sidecar was killed")
            expect(result.content[0].text == "counted", f"the result is {result}")
            result = await opened.call_tool("name", {})
            expect(result.content[0].text == "grok", f"the result is {result}")

    asyncio.run(run())


# Not before it counts: it kills a sidecar.
main(warm=False)
