// Node's own http module; it follows no redirects, so this does, as its users do.
import http from "node:http";
import { httpChecks, main } from "./driver.mjs";

function connect(way) {
  // A global agent that reads http_proxy comes with NODE_USE_ENV_PROXY=1.
  const agent = way.unix ? new http.Agent({ keepAlive: true }) : http.globalAgent;
  const ask = (method, path, body, url = way.url + path) =>
    new Promise((resolve, reject) => {
      const headers = { ...way.headers, ...(way.host && { host: way.host }) };
      const request = http.request(url, { method, agent, headers, socketPath: way.unix ?? undefined }, (answer) => {
        const to = answer.statusCode >= 300 && answer.statusCode < 400 && answer.headers.location;
        if (to) resolve(ask("GET", path, undefined, new URL(to, url)));
        else resolve({ status: answer.statusCode, pieces: answer });
      });
      request.on("error", reject);
      request.end(body);
    });
  return ask;
}

main(httpChecks(connect));
