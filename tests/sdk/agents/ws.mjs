// An agent on ws.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ port: Number(process.env.PORT), host: "127.0.0.1" });
server.on("connection", (socket) => socket.on("message", (text) => socket.send(`grok: ${text}`)));
