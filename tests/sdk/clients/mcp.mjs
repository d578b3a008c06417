// The TypeScript SDK: version 1, or with "2" version 2.
import { expect, fetchFor, main, spread } from "./driver.mjs";

const second = process.argv[2] === "2";
const { Client } = await import(second ? "@modelcontextprotocol/client" : "@modelcontextprotocol/sdk/client/index.js");
const { StreamableHTTPClientTransport } = await import(
  second ? "@modelcontextprotocol/client" : "@modelcontextprotocol/sdk/client/streamableHttp.js");

async function session(way, use) {
  const client = new Client({ name: "test", version: "1.0.0" });
  const options = { fetch: await fetchFor(way), requestInit: { headers: way.headers } };
  const transport = new StreamableHTTPClientTransport(new URL(way.url + "/mcp"), options);
  await client.connect(transport);
  try {
    return await use(client);
  } finally {
    await transport.terminateSession?.();
    await client.close();
  }
}

main({
  tool: (way) => session(way, async (client) => {
    const listed = (await client.listTools()).tools.map((tool) => tool.name).sort().join();
    expect(listed === "count,name", `the tools are ${listed}`);
    const result = await client.callTool({ name: "name", arguments: {} });
    expect(result.content[0].text === "grok", `the result is ${JSON.stringify(result)}`);
  }),
  progress: (way) => session(way, async (client) => {
    const arrivals = [];
    const options = { onprogress: () => arrivals.push(Date.now()) };
    const asked = { name: "count", arguments: {} };
    const result = second ? await client.callTool(asked, options) : await client.callTool(asked, undefined, options);
    expect(result.content[0].text === "counted", `the result is ${JSON.stringify(result)}`);
    spread(arrivals);
  }),
});
