// With fetch: by base URL; and through the proxy or the unix socket with undici's own fetch.
import { Agent, ProxyAgent, fetch as undiciFetch } from "undici";

console.log(await (await fetch("http://127.0.0.1:3001/agents/grok/v1/name")).text());

const proxy = new ProxyAgent("http://127.0.0.1:3001");
console.log(await (await undiciFetch("http://grok.agent.mesh/v1/name", { dispatcher: proxy })).text());

const socket = new Agent({ connect: { socketPath: "/run/mesh-proxy/outbound.sock" } });
console.log(await (await undiciFetch("http://localhost/agents/grok/v1/name", { dispatcher: socket })).text());
