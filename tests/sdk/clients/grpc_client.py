import queue
import time
from urllib.parse import urlsplit

import grpc
from driver import check, elsewhere, expect, main, spread


def channel(way):
    target = f"unix:{way['unix']}" if way["unix"] else urlsplit(way["url"]).netloc
    if way["proxy"]:
        target = f"dns:///{target}:80"
    # For a unix socket it would make up an authority of the path, which is none.
    authority = "localhost" if way["unix"] else way["host"]
    return grpc.insecure_channel(target, [("grpc.default_authority", authority)] if authority else [])


def metadata(way):
    # Over the unix socket there is no other way to say whom one means.
    headers = {"x-mesh-agent": urlsplit(way["url"]).path.split("/")[-1]} if way["unix"] else way["headers"]
    return list(headers.items())


@check
def unary(way):
    got = channel(way).unary_unary("/Grok/Unary")(b"hello", metadata=metadata(way), timeout=8)
    expect(got == b"grok: hello", f"the answer is {got!r}")


@check
def stream(way):
    arrivals, got = [], []
    for piece in channel(way).unary_stream("/Grok/Stream")(b"hello", metadata=metadata(way), timeout=8):
        arrivals.append(time.monotonic())
        got.append(piece)
    expect(got == [b"hello", b"from", b"grok"], f"the answer is {got}")
    spread(arrivals)


@check
def bidirectional(way):
    """Longer in all than a request's body may be, and each message is answered before the next is sent."""
    waiting = queue.SimpleQueue()
    call = channel(way).stream_stream("/Grok/Bidirectional")(iter(waiting.get, None), metadata=metadata(way), timeout=8)
    message = b"hello" + b"x" * 100_000
    for number in range(30):
        waiting.put(message)
        got = next(call)
        expect(got == b"grok: " + message[:20], f"the answer to message {number} is {got!r}")
    waiting.put(None)
    expect(list(call) == [], "it ends with more than was asked")


@check
def error(way):
    way = elsewhere(way)
    try:
        channel(way).unary_unary("/Grok/Unary")(b"hello", metadata=metadata(way), timeout=8)
    except grpc.RpcError as raised:
        text = f"{raised.code()}: {raised.details()}"
        expect("no node" in text and "nobody" in text, f"the error shows only {text}")
        return
    raise AssertionError("an agent that does not exist answers")


# grpcio cannot fork once it was used.
main(warm=False)
