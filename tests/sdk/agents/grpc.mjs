// A gRPC server on grpc-js. Messages are bytes, so that nothing has to be generated.
import * as grpc from "@grpc/grpc-js";

const bytes = { requestSerialize: (b) => b, requestDeserialize: (b) => b, responseSerialize: (b) => b, responseDeserialize: (b) => b };
const method = (name, requestStream, responseStream) => ({ path: `/Grok/${name}`, requestStream, responseStream, ...bytes });
const grok = (text) => Buffer.concat([Buffer.from("grok: "), text.subarray(0, 20)]);

const server = new grpc.Server();
server.addService(
  { unary: method("Unary", false, false), stream: method("Stream", false, true), bidirectional: method("Bidirectional", true, true) },
  {
    unary: (call, answer) => answer(null, grok(call.request)),
    stream: async (call) => {
      for (const word of ["hello", "from", "grok"]) {
        call.write(Buffer.from(word));
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      call.end();
    },
    bidirectional: (call) => {
      call.on("data", (text) => call.write(grok(text)));
      call.on("end", () => call.end());
    },
  },
);
server.bindAsync(`127.0.0.1:${process.env.PORT}`, grpc.ServerCredentials.createInsecure(), () => {});
