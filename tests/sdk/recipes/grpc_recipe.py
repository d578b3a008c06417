# With grpcio. A gRPC client knows no base URL: say by metadata, on each call or in an interceptor, which agent is meant …
import grpc

channel = grpc.insecure_channel("127.0.0.1:3001")
call = channel.unary_unary("/Grok/Unary")  # or a generated stub's method
print(call(b"hello", metadata=[("x-mesh-agent", "grok")], timeout=5))

# … or once, by the channel's authority; or give the agent a listener of its own.
channel = grpc.insecure_channel("127.0.0.1:3001", [("grpc.default_authority", "grok.agent.mesh")])
print(channel.unary_unary("/Grok/Unary")(b"hello", timeout=5))
