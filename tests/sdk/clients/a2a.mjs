// Reads the agent's card and talks to the address that stands in it.
import { ClientFactory, ClientFactoryOptions, DefaultAgentCardResolver, JsonRpcTransportFactory } from "@a2a-js/sdk/client";
import { expect, fetchFor, main, spread } from "./driver.mjs";

async function client(way) {
  const fetch = await fetchFor(way);
  const fetchImpl = (url, options) => fetch(url, { ...options, headers: { ...Object.fromEntries(new Headers(options?.headers)), ...way.headers } });
  const factory = new ClientFactory({
    ...ClientFactoryOptions.default,
    transports: [new JsonRpcTransportFactory({ fetchImpl })],
    cardResolver: new DefaultAgentCardResolver({ fetchImpl }),
  });
  return factory.createFromUrl(`${way.url}/${way.name}/`);
}

const request = () => ({ message: { messageId: crypto.randomUUID(), role: 1, parts: [{ content: { $case: "text", value: "hello" } }] } });

main({
  message: async (way) => {
    const answer = JSON.stringify(await (await client(way)).sendMessage(request()));
    expect(answer.includes("grok"), `the answer is ${answer}`);
  },
  stream: async (way) => {
    const arrivals = [];
    let text = "";
    for await (const piece of (await client(way)).sendMessageStream(request())) {
      arrivals.push(Date.now());
      text += JSON.stringify(piece);
    }
    expect(text.includes("grok"), `the answer is ${text}`);
    spread(arrivals);
  },
});
