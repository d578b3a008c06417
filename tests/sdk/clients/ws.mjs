// ws, with http-proxy-agent's or https-proxy-agent's agent for a proxy; or the WebSocket of Node, undici or Bun.
import { HttpProxyAgent } from "http-proxy-agent";
import { HttpsProxyAgent } from "https-proxy-agent";
import * as undici from "undici";
import ws from "ws";
import { main } from "./driver.mjs";

const how = process.argv[2];

function open(way) {
  const url = way.url.replace("http:", "ws:") + "/socket";
  if (how === "builtin") return new WebSocket(url, { headers: way.headers });
  if (how === "undici") {
    const dispatcher = way.proxy ? new undici.ProxyAgent(way.proxy) : way.unix ? new undici.Agent({ connect: { socketPath: way.unix } }) : undefined;
    return new undici.WebSocket(url, { headers: way.headers, dispatcher });
  }
  const Agent = how === "https-proxy-agent" ? HttpsProxyAgent : HttpProxyAgent;
  const target = way.unix ? `ws+unix:${way.unix}:${new URL(url).pathname}` : url;
  return new ws(target, { headers: way.headers, agent: way.proxy ? new Agent(way.proxy) : undefined });
}

main({
  echo: (way) => new Promise((resolve, reject) => {
    const socket = open(way);
    socket.onopen = () => socket.send("hello");
    socket.onerror = (event) => reject(new Error(event.message || event.error?.cause?.message || "the connection failed"));
    socket.onmessage = ({ data }) => {
      socket.close();
      data === "grok: hello" ? resolve() : reject(new Error(`the answer is ${data}`));
    };
  }),
});
