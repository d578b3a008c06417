"""websocket-client, which always sends an Origin."""

import socket

import websocket
from driver import check, expect, main


@check
def echo(way):
    url = way["url"].replace("http:", "ws:") + "/socket"
    options = {"header": way["headers"]}
    if way["unix"]:
        options["socket"] = socket.socket(socket.AF_UNIX)
        options["socket"].connect(way["unix"])
    opened = websocket.create_connection(url, timeout=10, **options)
    opened.send("hello")
    got = opened.recv()
    opened.close()
    expect(got == "grok: hello", f"the answer is {got!r}")


main()
