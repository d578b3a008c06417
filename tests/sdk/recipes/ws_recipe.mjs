// With ws for Node.
import WebSocket from "ws";

const socket = new WebSocket("ws://127.0.0.1:3001/agents/grok/socket");
socket.on("open", () => socket.send("hello"));
socket.on("message", (text) => {
  console.log(`${text}`);
  socket.close();
});
