// With openai for Node.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:3001/agents/grok/v1", apiKey: "unused" });
const answer = await client.chat.completions.create({ model: "grok", messages: [{ role: "user", content: "hello" }] });
console.log(answer.choices[0].message.content);
