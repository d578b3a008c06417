// fetch: that of Node or Bun, or undici's with one of its agents.
import * as undici from "undici";
import { httpChecks, main } from "./driver.mjs";

const how = process.argv[2];

function connect(way) {
  let fetch = undici.fetch;
  let options = {};
  if (how === "builtin") fetch = globalThis.fetch;
  else if (how === "bun") {
    fetch = globalThis.fetch;
    if (way.unix) options = { unix: way.unix };
  } else if (way.unix) options = { dispatcher: new undici.Agent({ connect: { socketPath: way.unix } }) };
  else if (way.proxy && how === "proxy-agent") options = { dispatcher: new undici.ProxyAgent(way.proxy) };
  else if (how === "env-agent") options = { dispatcher: new undici.EnvHttpProxyAgent() };
  return async (method, path, body) => {
    const answer = await fetch(way.url + path, { method, body, headers: way.headers, ...options });
    return { status: answer.status, pieces: answer.body };
  };
}

main(httpChecks(connect));
