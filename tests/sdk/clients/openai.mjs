import OpenAI from "openai";
import { elsewhere, expect, fetchFor, main, shows, spread } from "./driver.mjs";

const asked = { model: "grok", messages: [{ role: "user", content: "hello" }] };

async function client(way) {
  return new OpenAI({
    baseURL: way.url + "/v1", apiKey: "unused", defaultHeaders: way.headers, fetch: await fetchFor(way), maxRetries: 0,
  });
}

main({
  chat: async (way) => {
    const answer = await (await client(way)).chat.completions.create(asked);
    const text = answer.choices[0].message.content;
    expect(text === "hello from grok", `the answer is ${text}`);
  },
  stream: async (way) => {
    const arrivals = [];
    let text = "";
    for await (const chunk of await (await client(way)).chat.completions.create({ ...asked, stream: true })) {
      arrivals.push(Date.now());
      text += chunk.choices[0].delta.content;
    }
    expect(text === "hello from grok", `the answer is ${text}`);
    spread(arrivals);
  },
  error: async (way) => {
    try {
      await (await client(elsewhere(way))).chat.completions.create(asked);
    } catch (error) {
      return shows(error);
    }
    expect(false, "an agent that does not exist answers");
  },
});
