// got reads no environment: a proxy is an agent of its own, here http-proxy-agent's.
import got from "got";
import { HttpProxyAgent } from "http-proxy-agent";
import { httpChecks, main } from "./driver.mjs";

function connect(way) {
  const agent = way.proxy ? { http: new HttpProxyAgent(way.proxy) } : undefined;
  const base = way.unix ? `http://unix:${way.unix}:${new URL(way.url).pathname}` : way.url;
  return (method, path, body) =>
    new Promise((resolve, reject) => {
      const options = { method, body, headers: way.headers, agent, throwHttpErrors: false, enableUnixSockets: true, retry: { limit: 0 } };
      const stream = got.stream(base + path, options);
      stream.on("error", reject);
      stream.on("response", (answer) => resolve({ status: answer.statusCode, pieces: stream }));
    });
}

main(httpChecks(connect));
