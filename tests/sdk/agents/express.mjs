// An agent on Express, bound to localhost as Node does it: to ::1 where that comes first.
import express from "express";

const app = express();
app.enable("strict routing");
app.post("/echo", express.raw({ type: () => true, limit: "20mb" }), (request, response) => {
  response.json({ method: request.method, path: request.originalUrl, bytes: request.body.length, peer: request.get("x-mesh-peer-cn") });
});
app.get("/redirect", (request, response) => response.redirect(`${request.protocol}://${request.get("host")}/landed`));
app.get("/folder", (_, response) => response.redirect(301, "/folder/"));
app.get(["/landed", "/folder/"], (_, response) => response.send("landed"));
app.get("/events", async (_, response) => {
  response.type("text/event-stream");
  for (const word of ["hello", "from", "grok"]) {
    response.write(`data: ${word}\n\n`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  response.end();
});
app.listen(Number(process.env.PORT), process.env.HOST);
