"""httpx, or with "httpx2" httpx2; with "h2" it speaks HTTP/2 without asking first."""

import importlib
import sys

from driver import http_checks, main

httpx = importlib.import_module(sys.argv[1])
H2 = "h2" in sys.argv


def connect(way):
    options = {"http1": not H2, "http2": H2}
    if way["unix"]:
        options["transport"] = httpx.HTTPTransport(uds=way["unix"], **options)
    client = httpx.Client(headers=way["headers"], follow_redirects=True, timeout=10, **options)

    def ask(method, path, body=None):
        request = client.build_request(method, way["url"] + path, content=body)
        answer = client.send(request, stream=True)
        return answer.status_code, answer.iter_bytes()
    return ask


http_checks(connect)
main()
