# With grpcio. A gRPC client does not have a base URL. Name the agent in the metadata of each call, or in an interceptor:
import grpc

channel = grpc.insecure_channel("127.0.0.1:3001")
call = channel.unary_unary("/Grok/Unary")  # or a generated stub's method
print(call(b"hello", metadata=[("x-mesh-agent", "grok")], timeout=5))

# Or name it once, as the channel's authority. A listener of the agent's own works too.
channel = grpc.insecure_channel("127.0.0.1:3001", [("grpc.default_authority", "grok.agent.mesh")])
print(channel.unary_unary("/Grok/Unary")(b"hello", timeout=5))
