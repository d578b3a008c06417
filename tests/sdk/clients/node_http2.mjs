// Node's own http2 module, without TLS; one session for all requests.
import http2 from "node:http2";
import net from "node:net";
import { httpChecks, main } from "./driver.mjs";

function connect(way) {
  const base = new URL(way.url);
  const session = http2.connect(base.origin, way.unix ? { createConnection: () => net.connect(way.unix) } : {});
  session.on("error", () => {});
  const send = (method, target, body) =>
    new Promise((resolve, reject) => {
      const headers = { ":method": method, ":path": target, ...way.headers };
      if (way.host) headers[":authority"] = way.host;
      const stream = session.request(headers);
      stream.on("error", reject);
      stream.on("response", (answer) => {
        const to = answer[":status"] >= 300 && answer[":status"] < 400 && answer.location;
        if (!to) return resolve({ status: answer[":status"], pieces: stream });
        const url = new URL(to, new URL(target, base));
        const home = [base.host, way.host].includes(url.host);
        home ? resolve(send("GET", url.pathname + url.search)) : reject(new Error(`sent on to ${url}`));
      });
      stream.end(body);
    });
  return (method, path, body) => send(method, base.pathname.replace(/\/$/, "") + path, body);
}

main(httpChecks(connect));
