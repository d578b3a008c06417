"""Takes the spans of two real sidecars and their registryds over HTTP, reads them with OpenTelemetry's own protobuf
classes, and checks that a call over both is one tree."""

import gzip
import http.client
import http.server
import sys
import tempfile
import threading
from pathlib import Path

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))
import mesh  # noqa: E402

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"

spans, seen = [], []


class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Receiver(Quiet):
    def do_POST(self):
        body = self.body()
        if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
            return self.send_error(404)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        sent = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for of_resource in sent.resource_spans:
            resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for of_scope in of_resource.scope_spans:
                spans.extend((resource, span) for span in of_scope.spans)
        self.answer("application/x-protobuf", trace_service_pb2.ExportTraceServiceResponse().SerializeToString())


class Agent(Quiet):
    def do_POST(self):
        self.body()
        seen.append(self.headers)
        self.answer("application/json", b"{}")


def serve(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class Traced(mesh.Mesh):
    def config(self, name, agents, proxy):
        endpoint = f"http://127.0.0.1:{self.collector}"
        return {**super().config(name, agents, proxy), "telemetry": {"otlp": {"endpoint": endpoint}}}


def of(node):
    """The span of the node's sidecar in the trace."""
    mine = lambda resource, span: resource["service.name"] == "mesh-proxy" and resource["mesh.node"] == node
    return [span for resource, span in spans if span.trace_id.hex() == TRACE_ID and mine(resource, span)]


with tempfile.TemporaryDirectory() as folder:
    nodes = Traced(folder, mesh.make_ca(folder))
    nodes.collector = serve(Receiver)
    try:
        nodes.start([{"address": f"127.0.0.1:{serve(Agent)}"}])
        connection = http.client.HTTPConnection("127.0.0.1", nodes.outbound, timeout=10)
        headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "content-type": "application/json"}
        connection.request("POST", "/agents/grok/api/message", "{}", headers)
        assert connection.getresponse().status == 200
        mesh.wait_for("both spans are there", lambda: of("ct110") and of("ct111"))
        mesh.wait_for("registryd sends its own", lambda: any(r["service.name"] == "registryd" for r, _ in spans))
    finally:
        nodes.end()
    ([client], [server]) = of("ct110"), of("ct111")
    assert (client.kind, server.kind) == (trace_pb2.Span.SPAN_KIND_CLIENT, trace_pb2.Span.SPAN_KIND_SERVER)
    assert client.parent_span_id.hex() == CALLER, client
    assert server.parent_span_id == client.span_id, server
    assert seen[-1]["traceparent"] == f"00-{TRACE_ID}-{server.span_id.hex()}-01", seen[-1]["traceparent"]
    for span in (client, server):
        assert span.name == "POST /api/message" and span.status.code == trace_pb2.Status.STATUS_CODE_UNSET, span
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60 * 10**9, span
    print("a receiver made of OpenTelemetry's own classes reads the spans of a call as one tree")
