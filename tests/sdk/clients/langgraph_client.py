import time

import httpx
from driver import check, elsewhere, expect, main, spread
from langgraph.pregel.remote import RemoteGraph

ASKED = {"messages": [{"role": "user", "content": "hello"}]}


def graph(way):
    return RemoteGraph("agent", url=way["url"], headers=way["headers"])


def last(state):
    return state["messages"][-1]["content"]


@check
def invoke(way):
    text = last(graph(way).invoke(ASKED))
    expect(text == "hello from grok", f"the answer is {text!r}")


@check
def stream(way):
    arrivals, text = [], ""
    for state in graph(way).stream(ASKED, stream_mode="values"):
        arrivals.append(time.monotonic())
        text = last(state)
    expect(text == "hello from grok", f"the answer is {text!r}")
    spread(arrivals)


@check
def error(way):
    try:
        graph(elsewhere(way)).invoke(ASKED)
    except httpx.HTTPStatusError as raised:
        # What the SDK says is the status; the sidecar's detail is in the answer that the error holds.
        expect(raised.response.status_code == 404, f"the status is {raised.response.status_code}")
        expect(raised.response.headers["x-mesh-error"].startswith("unknown_"), "the answer does not have the sidecar's code")
        return
    raise AssertionError("an agent that does not exist answers")


main()
