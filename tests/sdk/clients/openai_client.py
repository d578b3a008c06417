import time

import httpx2
import openai
from driver import check, elsewhere, expect, main, shows, spread

ASKED = {"model": "grok", "messages": [{"role": "user", "content": "hello"}]}


def client(way):
    http_client = httpx2.Client(transport=httpx2.HTTPTransport(uds=way["unix"])) if way["unix"] else None
    return openai.OpenAI(base_url=way["url"] + "/v1", api_key="unused", default_headers=way["headers"],
                         http_client=http_client, max_retries=0, timeout=10)


@check
def chat(way):
    text = client(way).chat.completions.create(**ASKED).choices[0].message.content
    expect(text == "hello from grok", f"the answer is {text!r}")


@check
def stream(way):
    arrivals, text = [], ""
    for chunk in client(way).chat.completions.create(**ASKED, stream=True):
        arrivals.append(time.monotonic())
        text += chunk.choices[0].delta.content
    expect(text == "hello from grok", f"the answer is {text!r}")
    spread(arrivals)


@check
def error(way):
    try:
        client(elsewhere(way)).chat.completions.create(**ASKED)
    except openai.APIStatusError as raised:
        return shows(raised)
    raise AssertionError("an agent that does not exist answers")


main()
