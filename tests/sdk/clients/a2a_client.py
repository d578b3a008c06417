"""Reads the agent's card and talks to the address that stands in it."""

import asyncio
import time

import httpx
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_artifact_text, new_text_message
from a2a.types import Role, SendMessageRequest
from driver import check, expect, main, spread


def ask(way, streaming):
    """Gives the text of the answer, and when its pieces came."""
    async def run():
        socket = httpx.AsyncHTTPTransport(uds=way["unix"]) if way["unix"] else None
        http_client = httpx.AsyncClient(headers=way["headers"], transport=socket, timeout=10)
        config = ClientConfig(streaming=streaming, httpx_client=http_client)
        client = await create_client(f"{way['url']}/{way['name']}", config)
        text, arrivals = "", []
        request = SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))
        async for piece in client.send_message(request):
            arrivals.append(time.monotonic())
            for artifact in [piece.artifact_update.artifact, *piece.task.artifacts]:
                text += get_artifact_text(artifact)
        return text, arrivals
    return asyncio.run(run())


@check
def message(way):
    text, _ = ask(way, streaming=False)
    expect("grok" in text, f"the answer is {text!r}")


@check
def stream(way):
    text, arrivals = ask(way, streaming=True)
    expect(text == "hello from grok", f"the answer is {text!r}")
    spread(arrivals)


main()
