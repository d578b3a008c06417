import Anthropic from "@anthropic-ai/sdk";
import { elsewhere, expect, fetchFor, main, shows, spread } from "./driver.mjs";

const asked = { model: "grok", max_tokens: 100, messages: [{ role: "user", content: "hello" }] };

async function client(way) {
  return new Anthropic({
    baseURL: way.url, apiKey: "unused", defaultHeaders: way.headers, fetch: await fetchFor(way), maxRetries: 0,
  });
}

main({
  message: async (way) => {
    const { content } = await (await client(way)).messages.create(asked);
    expect(content[0].text === "hello from grok", `the answer is ${content[0].text}`);
  },
  stream: async (way) => {
    const arrivals = [];
    let text = "";
    for await (const event of await (await client(way)).messages.create({ ...asked, stream: true })) {
      if (event.type !== "content_block_delta") continue;
      arrivals.push(Date.now());
      text += event.delta.text;
    }
    expect(text === "hello from grok", `the answer is ${text}`);
    spread(arrivals);
  },
  error: async (way) => {
    try {
      await (await client(elsewhere(way))).messages.create(asked);
    } catch (error) {
      return shows(error);
    }
    expect(false, "an agent that does not exist answers");
  },
});
