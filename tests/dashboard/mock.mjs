// Answers as registryd and mesh-proxy of a made-up mesh: any number of nodes, steady traffic, hostile names.
// Used by dashboard.mjs; by hand: node mock.mjs <folder> <nodes>, then meshctl dashboard --config <folder>/mesh.yaml.
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";

const DAY_S = 86400;
const AGENTS = ["opus", "grok", "local", "gemini", "scribe", "coder", "search", "critic"];
const PATHS = ["/api/message", "/v1/chat/completions", "/mcp", "/api/tasks/summary", "/v1/responses"];

const BAD = ["<img src=x onerror=\"window.hacked=1\">", "</script><script>window.hacked=2</script>", "\u001b]0;owned\u0007\u001b[2J", "/\u202egnp.exe", "javascript:window.hacked=3", "constructor", "x".repeat(5000)];

// A sidecar and registryd check these themselves.
const isName = (text) => /^[a-z0-9-]+$/.test(text);

// The same mesh each time.
function random(seed) {
  // mulberry32
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
const hex = (next, digits) => Array.from({ length: digits }, () => Math.floor(next() * 16).toString(16)).join("");

export class Mock {
  constructor(folder, { count = 6, nodes, perSecond = 3, flowsEach = 2, hostile = false, closed = [], away = [] } = {}) {
    Object.assign(this, { folder, perSecond, hostile, closed: new Set(closed), away: new Set(away) });
    this.next = random(7);
    this.began = Date.now();
    this.serial = 0;
    this.events = new Set();
    this.readers = new Map();
    this.nodes = nodes || Array.from({ length: count }, (_, i) => this.node(`ct${110 + i}`, [AGENTS[i % AGENTS.length]]));
    if (this.nodes.length) this.nodes[0].local = true;
    this.flows = [];
    const callable = this.nodes.filter((each) => isName(each.name) && each.agents.every(isName));
    for (const [i, from] of callable.entries()) {
      for (let k = 0; k < flowsEach; k += 1) {
        const to = callable[(i * 7 + k * 3 + 1 + Math.floor(this.next() * callable.length)) % callable.length];
        if (to && to !== from) this.flows.push({ from: from.name, to, weight: 0.2 + this.next() * 2 });
      }
    }
    this.streams = this.flows.slice(0, Math.min(4, this.flows.length)).map((flow, i) => this.exchange(flow, { path: "/v1/chat/completions", began: this.began - [4000, 31000, 95000, 260000][i], status: 200 }));
  }

  node(name, agents, more = {}) {
    return {
      id: name, name, agents, host: `10.0.${this.next() * 250 | 0}.${this.next() * 250 | 0}`, port: 3000, providers: ["anthropic"], models: ["claude"],
      capabilities: ["tools"], status: "online", lastSeen: Date.now(), registeredAt: Date.now() - 9e6, version: "0.1.0", ageMs: 900, skewMs: 3,
      addresses: ["10.0.0.1"], local: false, ...more,
    };
  }

  exchange(flow, { path: where, began = Date.now(), status } = {}) {
    const trace = hex(this.next, 32);
    const base = { method: "POST", path: where || PATHS[Math.floor(this.next() * PATHS.length)], traceId: trace, beganMs: began, status, bytesIn: 800, bytesOut: 5200 };
    const agent = flow.to.agents[0];
    const caller = this.nodes.find((node) => node.name === flow.from);
    return {
      flow,
      out: { ...base, id: ++this.serial, direction: "outbound", node: flow.to.name, agent, attempts: 1, asAgent: caller.agents[0] ? `${caller.agents[0]}@${flow.from}` : undefined },
      in: { ...base, id: ++this.serial, direction: "inbound", peer: flow.from, agent, attempts: 0, beganMs: began + 2 },
    };
  }

  // What the sidecar of `name` has to tell at this moment.
  update(name, last) {
    const ended = [];
    const seconds = (Date.now() - last) / 1000;
    for (const flow of this.flows.filter((each) => each.from === name && each.to.status !== "offline")) {
      const calm = 0.6 + 0.4 * Math.sin((Date.now() - this.began) / 40000);
      const expected = flow.weight * this.perSecond * seconds * calm;
      let many = Math.floor(expected) + (this.next() < expected % 1 ? 1 : 0);
      for (; many > 0; many -= 1) {
        const each = this.exchange(flow);
        const took = Math.round(8 + this.next() ** 4 * 900);
        const lost = flow.to.name.endsWith("3") && this.next() < 0.3;
        const denied = !lost && this.next() < 0.015;
        const retried = !lost && this.next() < 0.02;
        const began = Date.now() - took - Math.floor(this.next() * 500);
        each.out.beganMs = began;
        each.in.beganMs = began + 2;
        const times = { durationMs: took, firstByteMs: Math.ceil(took * 0.6) };
        const end = lost ? { outcome: "error", code: "peer_unreachable", status: 502, tries: [{ node: flow.to.name, error: "peer_unreachable" }, { node: flow.to.name, error: "peer_unreachable" }] }
          : denied ? { outcome: "complete", code: "request_not_allowed", status: 403, tries: [{ node: flow.to.name }] }
            : { outcome: "complete", status: 200, tries: [...(retried ? [{ node: this.nodes[0].name, error: "peer_unreachable" }] : []), { node: flow.to.name }] };
        ended.push({ ...each.out, ...end, ...times, attempts: end.tries.length, connectMs: retried ? 12 : undefined });
        if (!lost) this.tell(flow.to.name, { ...each.in, outcome: denied ? "error" : "complete", code: end.code, status: end.status, ...times, durationMs: Math.max(1, took - 3) });
      }
    }
    ended.push(...(this.told?.get(name) || []));
    this.told?.delete(name);
    const inFlight = this.streams.filter(({ flow }) => flow.to.status !== "offline").flatMap((stream) => [...(stream.flow.from === name ? [stream.out] : []), ...(stream.flow.to.name === name ? [stream.in] : [])]);
    for (const each of inFlight) each.bytesOut += 700;
    const refused = this.refused?.get(name) || [];
    this.refused?.delete(name);
    if (this.hostile && name === this.nodes[0].name) {
      ended.push(...this.hostileRows());
      refused.push(...BAD.map((text) => this.refusal({ peer: text.replace("src=x", "src=r"), cause: text, reason: text })));
    }
    return { atMs: Date.now(), node: name, version: "0.1.0", inFlight, inFlightTotal: inFlight.length, ended, endedOmitted: 0, refused, refusedOmitted: this.refusedOmitted || 0 };
  }
  tell(name, row) {
    this.told ||= new Map();
    if (!this.told.has(name)) this.told.set(name, []);
    this.told.get(name).push(row);
  }

  refusal(more) {
    return { id: ++this.serial, atMs: Date.now(), address: "10.0.0.9", cause: "revoked", reason: "certificate is revoked", ...more };
  }
  // The sidecar of `name` refuses a connection before there is a request.
  refuse(name, more = {}) {
    this.refused ||= new Map();
    this.refused.set(name, [...(this.refused.get(name) || []), this.refusal(more)]);
  }

  hostileRows() {
    return BAD.map((text) => ({
      id: ++this.serial, direction: "inbound", peer: text, method: text, path: text, traceId: text, beganMs: Date.now(), status: 403, bytesIn: 1, bytesOut: 2,
      attempts: 0, outcome: text, code: text, reason: text, durationMs: 5, firstByteMs: 2,
    }));
  }

  async start() {
    await fs.promises.mkdir(this.folder, { recursive: true });
    const at = (name) => path.join(this.folder, name);
    this.registryd = http.createServer((request, answer) => this.registry(request, answer));
    this.sidecar = http.createServer((request, answer) => this.live(request, answer));
    this.outbound = http.createServer((request, answer) => this.certificates(request, answer));
    const listen = (server, where) => new Promise((resolve) => server.listen(where, resolve));
    await listen(this.registryd, at("registryd.sock"));
    await listen(this.sidecar, at("admin.sock"));
    await listen(this.outbound, { port: 0, host: "127.0.0.1" });
    fs.writeFileSync(at("mesh.yaml"), JSON.stringify({
      mesh: { enabled: true, node_name: this.nodes[0]?.name || "ct110", tls: true },
      proxy: { outbound: { listen: `127.0.0.1:${this.outbound.address().port}` }, state_dir: this.folder },
      registryd: { socket: at("registryd.sock") },
    }));
    return at("mesh.yaml");
  }
  async end() {
    for (const server of [this.registryd, this.sidecar, this.outbound]) await stop(server);
  }

  registry(request, answer) {
    const json = (value) => { answer.setHeader("content-type", "application/json"); answer.end(JSON.stringify(value)); };
    const where = new URL(request.url, "http://localhost").pathname;
    if (where === "/mesh/nodes") return json(this.nodes);
    if (where === "/mesh/agents") {
      const agents = new Map();
      for (const node of this.nodes.filter((each) => isName(each.name))) for (const name of node.agents) agents.set(name, [...(agents.get(name) || []), { node: node.name, status: node.status, local: node.local }]);
      return json([...agents].map(([name, nodes]) => ({ name, nodes })));
    }
    if (where === "/v1/status") {
      return json({ node: this.nodes[0]?.name || "ct110", status: "online", version: "0.1.0", registryPath: "x", discovery: "none", nodes: this.nodes.length, online: 1, problems: [], sidecar: null, lastHeartbeatAgeMs: 1 });
    }
    if (where === "/mesh/events") {
      answer.writeHead(200, { "content-type": "text/event-stream" });
      answer.write(": hello\n\n");
      this.events.add(answer);
      return answer.on("close", () => this.events.delete(answer));
    }
    answer.writeHead(404).end();
  }
  change(event, node, status = "online") {
    this.changed = (this.changed || 0) + 1;
    for (const answer of this.events) answer.write(`id: ${this.changed}\nevent: ${event}\ndata: ${JSON.stringify({ id: this.changed, event, node, status, agents: [], at: Date.now() })}\n\n`);
  }

  live(request, answer) {
    const url = new URL(request.url, "http://localhost");
    const name = url.searchParams.get("node") || this.nodes[0]?.name;
    const refuse = (status, code, detail) => {
      answer.writeHead(status, { "content-type": "application/problem+json" });
      answer.end(JSON.stringify({ code, status, title: code, detail, error: { message: detail, type: "mesh_error", code } }));
    };
    if (url.pathname !== "/v1/live") return answer.writeHead(404).end();
    if (this.closed.has(name)) return refuse(403, "live_not_permitted", `${name} does not name this node in proxy.live.peers`);
    if (this.away.has(name)) return refuse(502, "peer_unreachable", `${name} cannot be reached: connection refused`);
    answer.writeHead(200, { "content-type": "application/x-ndjson" });
    let last = Date.now();
    const write = () => {
      answer.write(`${JSON.stringify(this.update(name, last))}\n`);
      last = Date.now();
    };
    write();
    const timer = setInterval(write, 1000);
    answer.on("close", () => clearInterval(timer));
  }

  certificates(request, answer) {
    answer.setHeader("content-type", "application/json");
    const soon = Math.floor(Date.now() / 1000);
    const nodes = this.nodes.map((node, i) => ({ node: node.name, agents: node.agents, seenAt: soon, notAfter: soon + (node.days ?? 61 + ((i * 37) % 300)) * DAY_S + 3600 }));
    answer.end(JSON.stringify({ certified: false, nodes: nodes.filter((each) => isName(each.node)) }));
  }
}

async function stop(server) {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = new Mock(path.resolve(process.argv[2]), { count: Number(process.argv[3] || 6) });
  console.log(await mock.start());
}
