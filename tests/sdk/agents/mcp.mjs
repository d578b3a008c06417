// An MCP server on the TypeScript SDK, with a session for each client, as its examples do it.
import { randomUUID } from "node:crypto";
import { createMcpExpressApp } from "@modelcontextprotocol/sdk/server/express.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";

function server() {
  const made = new McpServer({ name: "grok", version: "1.0.0" });
  made.registerTool("name", {}, () => ({ content: [{ type: "text", text: "grok" }] }));
  made.registerTool("count", {}, async (extra) => {
    for (let progress = 0; progress < 3; progress++) {
      await extra.sendNotification({
        method: "notifications/progress", params: { progressToken: extra._meta.progressToken, progress, total: 3 },
      });
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    return { content: [{ type: "text", text: "counted" }] };
  });
  return made;
}

const sessions = new Map();
const app = createMcpExpressApp();
app.all("/mcp", async (request, response) => {
  let transport = sessions.get(request.get("mcp-session-id"));
  if (!transport) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID, onsessioninitialized: (id) => sessions.set(id, transport),
    });
    await server().connect(transport);
  }
  await transport.handleRequest(request, response, request.body);
});
app.listen(Number(process.env.PORT), "127.0.0.1");
