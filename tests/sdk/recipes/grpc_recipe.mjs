// With grpc-js.
import * as grpc from "@grpc/grpc-js";

const options = { "grpc.default_authority": "grok.agent.mesh" };
const client = new grpc.Client("127.0.0.1:3001", grpc.credentials.createInsecure(), options);
const bytes = (message) => message; // a generated client brings its own
client.makeUnaryRequest("/Grok/Unary", bytes, bytes, Buffer.from("hello"), (error, answer) => {
  console.log(error ?? `${answer}`);
  client.close();
});
