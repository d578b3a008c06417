"""An MCP server on version 2 of the Python SDK."""

import os

from mcp.server.mcpserver import Context, MCPServer
from mcp_tools import add_tools

server = MCPServer("grok", log_level="WARNING")
add_tools(server, Context)
server.run(transport="streamable-http", port=int(os.environ["PORT"]))
