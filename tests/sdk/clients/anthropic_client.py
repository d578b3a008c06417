import time

import anthropic
import httpx2
from driver import check, elsewhere, expect, main, shows, spread

ASKED = {"model": "grok", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}


def client(way):
    http_client = httpx2.Client(transport=httpx2.HTTPTransport(uds=way["unix"])) if way["unix"] else None
    return anthropic.Anthropic(base_url=way["url"], api_key="unused", default_headers=way["headers"],
                               http_client=http_client, max_retries=0, timeout=10)


@check
def message(way):
    text = client(way).messages.create(**ASKED).content[0].text
    expect(text == "hello from grok", f"the answer is {text!r}")


@check
def stream(way):
    arrivals, text = [], ""
    with client(way).messages.stream(**ASKED) as answer:
        for piece in answer.text_stream:
            arrivals.append(time.monotonic())
            text += piece
    expect(text == "hello from grok", f"the answer is {text!r}")
    spread(arrivals)


@check
def error(way):
    try:
        client(elsewhere(way)).messages.create(**ASKED)
    except anthropic.APIStatusError as raised:
        return shows(raised)
    raise AssertionError("an agent that does not exist answers")


main()
