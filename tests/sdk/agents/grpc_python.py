"""A gRPC server on grpcio. Messages are bytes, so that nothing has to be generated."""

import os
import time
from concurrent import futures

import grpc


def unary(request, _):
    return b"grok: " + request


def stream(request, _):
    for word in (b"hello", b"from", b"grok"):
        yield word
        time.sleep(0.2)


def bidirectional(requests, _):
    for request in requests:
        yield b"grok: " + request[:20]


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Stream": grpc.unary_stream_rpc_method_handler(stream),
    "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Grok", handlers),))
server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
server.start()
server.wait_for_termination()
