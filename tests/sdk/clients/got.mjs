// got reads no environment: a proxy is an agent of its own, here http-proxy-agent's.
import got from "got";
import { HttpProxyAgent } from "http-proxy-agent";
import { httpChecks, main } from "./driver.mjs";

function connect(way) {
  const agent = way.proxy ? { http: new HttpProxyAgent(way.proxy) } : undefined;
  const base = way.unix ? `http://unix:${way.unix}:${new URL(way.url).pathname}` : way.url;
  return async (method, path, body) => {
    const options = { method, body, headers: way.headers, agent, throwHttpErrors: false, enableUnixSockets: true, retry: { limit: 0 } };
    // Its streams lose a short body, once in a thousand times; so they are used for a stream only.
    if (path !== "/events") {
      const { statusCode, rawBody } = await got(base + path, options);
      return { status: statusCode, pieces: [rawBody] };
    }
    const stream = got.stream(base + path, options);
    const answer = await new Promise((resolve, reject) => stream.on("response", resolve).on("error", reject));
    return { status: answer.statusCode, pieces: stream };
  };
}

main(httpChecks(connect));
