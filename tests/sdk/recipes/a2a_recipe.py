# With a2a-sdk for Python. A client reads the agent's card and sends its requests to the address in the card. The card must
# therefore name an address that leads through the mesh from every host: `http://127.0.0.1:3001/agents/grok/…` or, where all
# clients use `http_proxy`, `http://grok.agent.mesh/…`; never the agent's own address, such as `http://127.0.0.1:8080/`. An agent
# built on a2a-sdk sets it with
# `AgentInterface(url="http://127.0.0.1:3001/agents/grok/rpc", protocol_binding="JSONRPC", protocol_version="1.0")`.
import asyncio

from a2a.client import create_client
from a2a.helpers import get_stream_response_text, new_text_message
from a2a.types import Role, SendMessageRequest


async def main():
    client = await create_client("http://127.0.0.1:3001/agents/grok/agent-url")
    async for piece in client.send_message(SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))):
        print(get_stream_response_text(piece))

asyncio.run(main())
