import * as grpc from "@grpc/grpc-js";
import { elsewhere, expect, main, spread } from "./driver.mjs";

const bytes = { requestSerialize: (b) => b, requestDeserialize: (b) => b, responseSerialize: (b) => b, responseDeserialize: (b) => b };
const method = (name, requestStream, responseStream) => ({ path: `/Grok/${name}`, requestStream, responseStream, ...bytes });
const Grok = grpc.makeGenericClientConstructor({
  unary: method("Unary", false, false), stream: method("Stream", false, true), bidirectional: method("Bidirectional", true, true),
}, "Grok");

function client(way) {
  const { host } = new URL(way.url);
  const target = way.unix ? `unix:${way.unix}` : way.proxy ? `dns:///${host}:80` : host;
  return new Grok(target, grpc.credentials.createInsecure(), way.host ? { "grpc.default_authority": way.host } : {});
}

function metadata(way) {
  const made = new grpc.Metadata();
  // Over the unix socket there is no other way to say whom one means.
  for (const [name, value] of Object.entries(way.unix ? { "x-mesh-agent": new URL(way.url).pathname.split("/").pop() } : way.headers)) made.set(name, value);
  return made;
}

const deadline = () => ({ deadline: Date.now() + 7000 });
const unary = (way) => new Promise((resolve, reject) =>
  client(way).unary(Buffer.from("hello"), metadata(way), deadline(), (error, answer) => (error ? reject(error) : resolve(`${answer}`))));

main({
  unary: async (way) => {
    const got = await unary(way);
    expect(got === "grok: hello", `the answer is ${got}`);
  },
  stream: async (way) => {
    const arrivals = [];
    const got = [];
    for await (const piece of client(way).stream(Buffer.from("hello"), metadata(way), deadline())) {
      arrivals.push(Date.now());
      got.push(`${piece}`);
    }
    expect(got.join() === "hello,from,grok", `the answer is ${got}`);
    spread(arrivals);
  },
  // Longer in all than a request's body may be, and each message is answered before the next is sent.
  bidirectional: async (way) => {
    const call = client(way).bidirectional(metadata(way), deadline());
    const message = Buffer.alloc(100_000, "x");
    let number = 0;
    call.write(message);
    for await (const answer of call) {
      expect(`${answer}` === `grok: ${"x".repeat(20)}`, `the answer to message ${number} is ${answer}`);
      if (++number === 30) call.end();
      else if (number < 30) call.write(message);
    }
    expect(number === 30, `it ended after ${number} of 30 messages`);
  },
  error: async (way) => {
    try {
      await unary(elsewhere(way));
    } catch (error) {
      return expect(/no node .*nobody/.test(error), `the error shows only ${error}`);
    }
    expect(false, "an agent that does not exist answers");
  },
});
