# With websocket-client. It sends an Origin header by default, which the sidecar takes for a web page's: suppress it, or allow
# it with `proxy.outbound.allowed_origins`.
import websocket

connection = websocket.create_connection("ws://127.0.0.1:3001/agents/grok/socket", suppress_origin=True)
connection.send("hello")
print(connection.recv())
