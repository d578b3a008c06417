import time

import httpx
import ollama
from driver import check, elsewhere, expect, main, shows, spread

ASKED = {"model": "grok", "messages": [{"role": "user", "content": "hello"}]}


def client(way):
    options = {"transport": httpx.HTTPTransport(uds=way["unix"])} if way["unix"] else {}
    return ollama.Client(host=way["url"], headers=way["headers"], timeout=10, **options)


@check
def chat(way):
    text = client(way).chat(**ASKED).message.content
    expect(text == "hello from grok", f"the answer is {text!r}")


@check
def stream(way):
    arrivals, text = [], ""
    for piece in client(way).chat(**ASKED, stream=True):
        arrivals.append(time.monotonic())
        text += piece.message.content
    expect(text == "hello from grok", f"the answer is {text!r}")
    spread(arrivals)


@check
def error(way):
    try:
        client(elsewhere(way)).chat(**ASKED)
    except ollama.ResponseError as raised:
        return shows(raised)
    raise AssertionError("an agent that does not exist answers")


main()
