// What the Node drivers share. A driver names its checks, functions of a way that throw if a user would notice
// something, and calls `main`. A check runs in all its ways at the same time, one check after the other.

const SECONDS = 8;

export function expect(condition, what) {
  if (!condition) throw new Error(what);
}

/** A stream's pieces came together: somebody held them back, or this process was too slow to see them come. */
class AllAtOnce extends Error {}

/** Fails if what was sent 0.2 s apart came all at once. */
export function spread(arrivals) {
  expect(arrivals.length > 1, `${arrivals.length} pieces came`);
  const took = arrivals.at(-1) - arrivals[0];
  if (took < 100) throw new AllAtOnce(`pieces 0.2 s apart came within ${took} ms, three times`);
}

/** The same way to an agent, or a node, that does not exist: nobody. */
export const elsewhere = (way) => JSON.parse(JSON.stringify(way).replaceAll("grok", "nobody").replaceAll("ct111", "nobody"));

/** Fails unless an SDK's error says, in what it prints, what the sidecar's does: that nobody is not known. */
export function shows(error) {
  expect(/no node .*nobody/.test(error), `the error shows only ${error}`);
}

/** undici's fetch, which takes a proxy or a unix socket as its dispatcher, as most SDKs let one pass it. */
export async function fetchFor(way) {
  const { Agent, ProxyAgent, fetch } = await import("undici");
  const dispatcher = way.proxy ? new ProxyAgent(way.proxy) : way.unix ? new Agent({ connect: { socketPath: way.unix } }) : undefined;
  return (url, options) => fetch(url, { ...options, dispatcher });
}

/** An error as one line, with what caused it. */
export function explain(error) {
  const parts = [];
  for (; error; error = error.cause ?? error.errors?.[0]) {
    parts.push(`${error.name ?? "Error"}: ${error.message ?? error}${error.code ? ` (${error.code})` : ""}`);
  }
  return [...new Set(parts)].join(" / from ").replace(/\s+/g, " ").slice(0, 600);
}

/** Tries again where a stream came all at once: the second time, an SDK has all of itself loaded. */
async function three(run, attempt = 1) {
  try {
    return await run();
  } catch (error) {
    if (!(error instanceof AllAtOnce) || attempt === 3) throw error;
    return three(run, attempt + 1);
  }
}

/** Reads jobs, a JSON list of {check, way}, from stdin, and prints a JSON line for each. */
export async function main(checks) {
  // Some clients throw what they have already reported once more, out of anybody's reach.
  process.on("uncaughtException", () => {});
  process.on("unhandledRejection", () => {});
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const jobs = JSON.parse(text);
  const run = async ({ check, way }) => {
    let error = null;
    const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`nothing within ${SECONDS} s`)), SECONDS * 1000));
    try {
      await Promise.race([three(() => checks[check](way)), late]);
    } catch (thrown) {
      if (process.env.SDK_TRACE) console.error(thrown);
      error = explain(thrown) || "failed";
    }
    console.log(JSON.stringify({ check, way: way.name, error }));
  };
  for (const check of new Set(jobs.map((job) => job.check))) {
    await Promise.all(jobs.filter((job) => job.check === check).map(run));
  }
  process.exit(0);
}

/** The checks of an HTTP client. `connect(way)` gives `ask(method, path, body)`, which follows redirects and gives
 *  `{status, pieces}`; the pieces of the body as they come. */
export function httpChecks(connect) {
  const whole = async ({ status, pieces }) => {
    const all = [];
    for await (const piece of pieces ?? []) all.push(piece);
    return { status, text: Buffer.concat(all).toString() };
  };
  const posts = async (ask, way) => {
    const { status, text } = await whole(await ask("POST", "/echo?q=1", Buffer.alloc(70_000, "x")));
    expect(status === 200, `POST /echo: ${status} ${text.slice(0, 300)}`);
    const { method, path, bytes, peer } = JSON.parse(text);
    const got = `${method} ${path} ${bytes} ${peer}`;
    expect(got === `POST /echo?q=1 70000 ${way.name === "direct" ? null : "ct110"}`, `the agent saw ${got}`);
  };
  return {
    post: async (way) => posts(await connect(way), way),
    redirect: async (way) => {
      const { status, text } = await whole(await (await connect(way))("GET", "/redirect"));
      expect(status === 200 && text === "landed", `GET /redirect, followed: ${status} ${text.slice(0, 300)}`);
    },
    stream: async (way) => {
      const answer = await (await connect(way))("GET", "/events");
      if (answer.status !== 200) expect(false, `GET /events: ${answer.status} ${(await whole(answer)).text.slice(0, 300)}`);
      const arrivals = [];
      let text = "";
      for await (const piece of answer.pieces) {
        arrivals.push(Date.now());
        text += Buffer.from(piece).toString();
      }
      expect(text.split("data:").length === 4, `three events were sent, got ${text}`);
      spread(arrivals);
    },
    "too-large": async (way) => {
      const ask = await connect(way);
      const { status, text } = await whole(await ask("POST", "/echo", Buffer.alloc(12_000_000, "x")));
      expect(status === 413 && text.includes("body_too_large"), `an upload over the limit: ${status} ${text.slice(0, 300)}`);
      await posts(ask, way);
    },
  };
}
