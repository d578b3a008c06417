"""An agent whose answers are short, but on /slow it sends a line a second until somebody asks for /enough."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENOUGH = threading.Event()


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/enough":
            ENOUGH.set()
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while self.path == "/slow" and not ENOUGH.wait(1):
            self.chunk(b"more\n")
        self.chunk(b"done\n")
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
