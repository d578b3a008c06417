import time

import openai
from driver import check, elsewhere, expect, main, shows, spread
from langchain_openai import ChatOpenAI


def model(way):
    return ChatOpenAI(model="grok", base_url=way["url"] + "/v1", api_key="unused", default_headers=way["headers"],
                      max_retries=0, timeout=10)


@check
def chat(way):
    text = model(way).invoke("hello").content
    expect(text == "hello from grok", f"the answer is {text!r}")


@check
def stream(way):
    arrivals, text = [], ""
    for piece in model(way).stream("hello"):
        if piece.content:
            arrivals.append(time.monotonic())
            text += piece.content
    expect(text == "hello from grok", f"the answer is {text!r}")
    spread(arrivals)


@check
def error(way):
    try:
        model(elsewhere(way)).invoke("hello")
    except openai.APIStatusError as raised:
        return shows(raised)
    raise AssertionError("an agent that does not exist answers")


main()
