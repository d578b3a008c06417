// The tests of `meshctl dashboard`, one after the other. Started by tests/dashboard.sh.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import net from "node:net";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";

import { Mock } from "./mock.mjs";

const { chromium } = createRequire(`${process.env.MESH_DASHBOARD_TOOLS}/`)("playwright-core");
const BIN = process.env.MESH_BIN;
// The machine may be busy.
const PATIENCE_MS = 30000;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "mesh-dashboard-"));
const processes = new Set();
process.on("exit", () => {
  for (const each of processes) each.kill("SIGKILL");
  fs.rmSync(folder, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

function start(program, args, env = {}) {
  const child = spawn(path.join(BIN, program), args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  processes.add(child);
  child.output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => { child.output += data; });
  child.ended = new Promise((resolve) => child.on("exit", (code, signal) => { processes.delete(child); resolve(signal || code); }));
  return child;
}
async function eventually(what, look, ms = PATIENCE_MS) {
  const until = Date.now() + ms;
  for (let last = ""; ; ) {
    try {
      const found = await look();
      if (found) return found;
    } catch (error) {
      if (error.final) throw error;
      last = error.message;
    }
    if (Date.now() > until) throw new Error(`not within ${ms / 1000} s: ${what}. ${last}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
const url = (child) => eventually("the URL is printed", () => {
  const found = /http:\/\/\S+\?token=\w+/.exec(child.output);
  if (!found && child.exitCode !== null) throw Object.assign(new Error(`it has ended: ${child.output}`), { final: true });
  return found && found[0];
});
const dashboard = (config) => start("meshctl", ["dashboard", "--no-open", "--config", config]);

function get(target, { headers = {}, method = "GET", unread = false } = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request(target, { headers, method, agent: false }, (answer) => {
      if (unread) return resolve({ status: answer.statusCode, end: () => request.destroy() });
      let body = "";
      answer.on("data", (data) => { body += data; });
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body }));
    });
    request.on("error", reject);
    request.end();
  });
}

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"] });

// A page, and whatever it complains about.
async function open(target, { expected = [], ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.complaints = [];
  const complain = (text) => { if (!expected.some((each) => text.includes(each))) page.complaints.push(text); };
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complain(message.text()); });
  page.on("pageerror", (error) => complain(error.message));
  page.on("dialog", (dialog) => { complain(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  await page.addInitScript(() => document.addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`)));
  await page.goto(target);
  await page.locator("#connection[data-state=live]").waitFor();
  page.finish = async () => {
    await context.close();
    assert.deepEqual(page.complaints, []);
  };
  return page;
}
// A list stands still while it is pointed at or has the focus.
async function leave(page) {
  await page.mouse.move(2, 2);
  await page.evaluate(() => document.activeElement.blur());
}
const row = (page, list, text) => page.locator(`#${list} button.row`, { hasText: text }).first();
async function withMock(options, work) {
  const mock = new Mock(fs.mkdtempSync(path.join(folder, "mock-")), options);
  const child = dashboard(await mock.start());
  try {
    return await work(await url(child), mock, child);
  } finally {
    child.kill("SIGINT");
    await child.ended;
    await mock.end();
  }
}

// ---- The mesh of `meshctl demo`, with real sidecars

const demo = { started: false };
async function theDemo() {
  if (!demo.started) {
    demo.started = true;
    demo.child = start("meshctl", ["demo", "--no-open"], { TMPDIR: folder });
    demo.url = await url(demo.child);
    demo.folder = path.join(folder, fs.readdirSync(folder).find((name) => name.startsWith("mesh-demo-")));
    demo.outbound = await eventually("the demo tells how to call", () => /http:\/\/127\.\d+\.\d+\.110:\d+/.exec(demo.child.output)?.[0]);
  }
  return demo;
}
// The demo's process that runs this program for a node.
function pidOf(program, node) {
  const config = path.join(demo.folder, node, "mesh.yaml");
  for (const pid of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const words = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      if (path.basename(words[0]) === program && words.includes(config)) return Number(pid);
    } catch { /* it has ended */ }
  }
  throw new Error(`no ${program} of ${node} runs`);
}

const tests = {
  async "only the token opens it, from this host's own names, for reading"() {
    const { url: whole } = await theDemo();
    const base = whole.split("?")[0];
    const host = new URL(whole).host;
    for (const target of [base, `${base}?token=`, whole.replace(/.$/, (last) => (last === "0" ? "1" : "0")), `${base}events`]) {
      const answer = await get(target);
      assert.equal(answer.status, 403, target);
      assert.match(answer.body, /Open the URL that `meshctl dashboard` has printed/);
    }
    for (const name of ["attacker.example", `attacker.example:${host.split(":")[1]}`, "127.0.0.1", "localhost:1"]) {
      const answer = await get(whole, { headers: { host: name } });
      assert.equal(answer.status, 403, name);
      assert.match(answer.body, /answers as 127.0.0.1, \[::1\] or localhost/);
    }
    const entered = await get(whole);
    assert.equal(entered.status, 303);
    const [cookie] = entered.headers["set-cookie"];
    assert.match(cookie, /; Path=\/[0-9a-f]{32}\/; HttpOnly; SameSite=Strict$/);
    const place = new URL(entered.headers.location, whole).href;
    const page = await get(place, { headers: { cookie: cookie.split(";")[0] } });
    assert.equal(page.status, 200);
    assert.match(page.headers["content-security-policy"], /^default-src 'none'; script-src 'sha256-[^ ]+'; style-src 'sha256-[^ ]+';.*frame-ancestors 'none'/);
    assert.equal(page.headers["referrer-policy"], "no-referrer");
    assert.equal(page.headers["x-content-type-options"], "nosniff");
    assert.ok(!page.body.includes(new URL(whole).searchParams.get("token")));
    assert.equal((await get(place)).status, 403, "the place alone does not open it");
    assert.equal((await get(place, { headers: { cookie: cookie.split(";")[0] }, method: "POST" })).status, 405);
    const elsewhere = await get(`${place}events`, { headers: { cookie: cookie.split(";")[0], "sec-fetch-site": "cross-site" } });
    assert.equal(elsewhere.status, 403);
    // Many readers, but not without end.
    const readers = [];
    for (let i = 0; i < 20; i += 1) readers.push(await get(`${place}events`, { headers: { cookie: cookie.split(";")[0] }, unread: true }));
    assert.ok(readers.some((each) => each.status === 503) && readers[0].status === 200);
    readers.forEach((each) => each.end());
    const refused = start("meshctl", ["dashboard", "--listen", "0.0.0.0:0"]);
    assert.equal(await refused.ended, 2);
    assert.match(refused.output, /not a loopback address.*ssh -L/);
  },

  async "a desktop's browser is given a file that only its user can read, and gets to the page"() {
    const mock = new Mock(fs.mkdtempSync(path.join(folder, "mock-")), { count: 3 });
    const desktop = fs.mkdtempSync(path.join(folder, "desktop-"));
    const told = path.join(desktop, "told");
    fs.writeFileSync(path.join(desktop, "xdg-open"), `#!/bin/sh\necho "$#" "$@" >"${told}.new" && mv "${told}.new" "${told}"\n`, { mode: 0o755 });
    const child = start("meshctl", ["dashboard", "--config", await mock.start()], { DISPLAY: ":9", XDG_RUNTIME_DIR: desktop, PATH: `${desktop}:${process.env.PATH}` });
    await url(child);
    const [count, file] = (await eventually("the browser is started", () => fs.existsSync(told) && fs.readFileSync(told, "utf8"))).trim().split(" ");
    assert.equal(count, "1");
    assert.match(file, /^\/.*\.html$/);
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(`file://${file}`);
    await page.locator("#connection[data-state=live]").waitFor({ timeout: PATIENCE_MS });
    assert.ok(!page.url().includes("token"));
    await context.close();
    child.kill("SIGINT");
    assert.equal(await child.ended, 0);
    assert.ok(!fs.existsSync(file), "it is removed");
    await mock.end();
  },

  async "requests, streams and refusals show as they happen, each with its way"() {
    const { url: whole, outbound } = await theDemo();
    const page = await open(whole);
    assert.ok(!page.url().includes("token"), page.url());
    await row(page, "list", "ct113").waitFor();
    assert.equal(await page.locator("#nodes .node").count(), 4);
    await row(page, "agents", "grok").getByText("on ct111, ct113").waitFor();
    await row(page, "list", "ct110").getByText(/\d+ days/).waitFor();
    await row(page, "list", "ct112").getByText("read live").waitFor();
    await row(page, "flight", "/api/story/").getByText("streaming").waitFor();
    await page.locator("#tile-rate .figure b", { hasText: /[1-9]/ }).waitFor();

    const answer = await get(`${outbound}/nodes/ct111/api/think/77`);
    assert.equal(answer.status, 200, answer.body);
    const called = row(page, "requests", "/api/think/77");
    await called.waitFor();
    await called.click();
    const details = page.getByRole("dialog");
    await details.getByText("a program on ct110").waitFor();
    await details.getByText("mesh-proxy on ct111").waitFor();
    await details.getByText("verified the peer as ct110").waitFor();
    await details.getByText(/^[0-9a-f]{32}$/).waitFor();
    await details.getByText("ct111, called").waitFor();
    await page.locator("#requests button.row.chosen", { hasText: "/api/think/77" }).waitFor();
    await page.keyboard.press("Escape");
    await details.waitFor({ state: "hidden" });
    await leave(page);

    assert.equal((await get(`${outbound}/nodes/ct113/api/admin/seventy`)).status, 403);
    const refusal = row(page, "failures", "ct110→ct113");
    await refusal.getByText("request_not_allowed").waitFor();
    await refusal.click();
    await details.getByText("was not asked").waitFor();
    await page.keyboard.press("Escape");
    await page.locator("#failures-count.paused").waitFor();
    await leave(page);
    assert.equal((await get(`${outbound}/agents/nobody/x`)).status, 404);
    await row(page, "failures", "unknown_agent").waitFor();

    // What a sidecar refuses before there is a request.
    const config = fs.readFileSync(path.join(demo.folder, "ct111", "mesh.yaml"), "utf8");
    const stranger = net.connect(Number(/agent_channel_port: (\d+)/.exec(config)[1]), /advertise_host: (\S+)/.exec(config)[1], () => stranger.end("not TLS\r\n\r\n"));
    stranger.on("error", () => {});
    await row(page, "failures", "not a TLS client").getByText("→ct111").waitFor();
    await page.finish();
  },

  async "connections that were refused show with their reasons, and what is alike as one"() {
    await withMock({ count: 3, perSecond: 0 }, async (target, mock) => {
      const page = await open(target);
      for (let i = 0; i < 5; i += 1) mock.refuse("ct111", { address: `10.0.0.${20 + i}` });
      mock.refuse("ct112", { peer: "ct110", address: "10.0.0.30", cause: "policy", reason: "not allowed to connect by proxy.policy" });
      const revoked = row(page, "failures", "certificate is revoked");
      await revoked.getByText("refused 5×").waitFor();
      await row(page, "failures", "ct110→ct112").getByText("not allowed to connect by proxy.policy").waitFor();
      assert.equal(await page.locator("#failures button.row").count(), 2);
      await revoked.click();
      const details = page.getByRole("dialog");
      await details.getByText("10.0.0.24").first().waitFor();
      await details.getByText("mesh-proxy on ct111, before there was a request").waitFor();
      await details.getByText("issue a new one").waitFor();
      mock.refuse("ct111", { address: "10.0.0.40" });
      await details.getByText("6 told one by one").waitFor();
      await page.keyboard.press("Escape");
      await leave(page);
      mock.refusedOmitted = 700;
      await page.locator("#failures-count").getByText("refused not told one by one").waitFor();
      await page.locator("#filter").fill("policy");
      await revoked.waitFor({ state: "detached" });
      await page.finish();
    });
  },

  async "the keyboard reaches everything"() {
    const { url: whole } = await theDemo();
    const page = await open(whole);
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.dataset.name || document.activeElement.textContent);
    await row(page, "list", "ct113").waitFor();
    await page.keyboard.press("/");
    assert.equal(await focused(), "filter");
    await page.keyboard.type("scribe");
    await row(page, "list", "ct113").waitFor({ state: "detached" });
    await row(page, "list", "ct112").waitFor();
    await page.keyboard.press("Escape");
    await row(page, "list", "ct113").waitFor();
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "ct110");
    await page.keyboard.press("ArrowDown");
    assert.notEqual(await focused(), "ct110");
    await page.keyboard.press("ArrowUp");
    assert.equal(await focused(), "ct110");
    await page.keyboard.press("Enter");
    const details = page.getByRole("dialog");
    await details.getByText("Certificate").waitFor();
    assert.equal(await focused(), "details-title");
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "details-close");
    await page.keyboard.press("Escape");
    await details.waitFor({ state: "hidden" });
    assert.equal(await focused(), "ct110");
    // Along a list, with one stop of Tab for all of it.
    await row(page, "list", "ct110").focus();
    await page.keyboard.press("ArrowDown");
    assert.match(await focused(), /^ct111/);
    await page.keyboard.press("End");
    assert.match(await focused(), /^ct113/);
    await page.keyboard.press("Enter");
    await details.getByText("Hosted by").or(details.getByText("Address")).first().waitFor();
    await page.keyboard.press("Escape");
    assert.match(await focused(), /^ct113/);
    assert.equal(await page.locator('#list button.row[tabindex="0"]').count(), 1);
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, "solid");
    await page.finish();
  },

  async "what is broken is told, with what to do, and mends by itself"() {
    const { url: whole, child } = await theDemo();
    const page = await open(whole, { expected: ["Failed to load resource", "net::ERR"] });
    await row(page, "list", "ct113").waitFor();
    const banner = (key) => page.locator(`.banner[data-key="${key}"]`);
    for (const [program, key, text] of [["registryd", "registry", "systemctl status registryd"], ["mesh-proxy", "sidecar", "systemctl status mesh-proxy"]]) {
      process.kill(pidOf(program, "ct110"), "SIGKILL");
      await banner(key).getByText(text).waitFor();
      assert.equal(await page.locator("#nodes .node").count(), 4, "what was known stays");
      const again = start(program, ["--config", path.join(demo.folder, "ct110", "mesh.yaml")]);
      await banner(key).waitFor({ state: "detached" });
      demo.again = [...(demo.again || []), again];
    }
    await row(page, "list", "ct111").getByText("read live").waitFor();
    // They are not the demo's, and write to the folder that it removes.
    for (const each of demo.again) {
      each.kill("SIGTERM");
      await each.ended;
    }
    child.kill("SIGINT");
    await banner("lost").getByText("start it again").waitFor();
    assert.equal(await child.ended, 0, child.output);
    demo.started = false;
    await page.finish();
  },

  // ---- Meshes made up by mock.mjs

  async "hostile names and paths are shown as text"() {
    const bad = '<img src=x onerror="window.hacked=1">';
    const nodes = (mock) => [mock.node("ct110", ["opus"]), mock.node(bad, [bad, "\u202egrok"], { version: bad, host: bad, models: [bad] }), mock.node("ct112", ["</script><script>window.hacked=2</script>"])];
    await withMock({ nodes: nodes(new Mock(folder)), hostile: true }, async (target, mock) => {
      const page = await open(target);
      await row(page, "failures", "<img src=x").waitFor();
      mock.change(bad, bad);
      await page.locator("#changes .row", { hasText: "<img" }).first().waitFor();
      await row(page, "list", "<img").click();
      await page.getByRole("dialog").getByText("<img").first().waitFor();
      await page.keyboard.press("Escape");
      await row(page, "failures", "<img src=x").click();
      await page.getByRole("dialog").getByText("window.hacked").first().waitFor();
      await page.keyboard.press("Escape");
      await leave(page);
      await row(page, "failures", "<img src=r").click();
      await page.getByRole("dialog").getByText("before there was a request").waitFor();
      const found = await page.evaluate(() => ({
        hacked: window.hacked, images: document.images.length, scripts: document.scripts.length,
        links: [...document.links].map((each) => each.getAttribute("href")),
        hidden: /[\u0000-\u0008\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/.test(document.body.innerText),
        wide: document.documentElement.scrollWidth > innerWidth,
      }));
      assert.deepEqual(found, { hacked: undefined, images: 0, scripts: 1, links: ["#requests-title"], hidden: false, wide: false });
      await page.finish();
    });
  },

  async "an empty mesh, closed nodes, and a page that is out of date say what to do"() {
    await withMock({ count: 0 }, async (target) => {
      const page = await open(target);
      await page.locator("#map-empty").getByText("meshctl invite").waitFor();
      await page.locator("#requests").getByText("No requests yet").waitFor();
      await page.finish();
    });
    await withMock({ count: 6, closed: ["ct112"], away: ["ct113"] }, async (target, mock, child) => {
      const page = await open(target, { expected: ["Failed to load resource", "net::ERR"] });
      await page.locator('.banner[data-key="closed"]').getByText("ct112").first().waitFor();
      await row(page, "list", "ct113").getByText("no live view").waitFor();
      await row(page, "list", "ct112").click();
      await page.getByRole("dialog").getByText("live: {peers: [ct110]}").waitFor();
      const port = new URL(target).port;
      child.kill("SIGINT");
      await child.ended;
      const again = start("meshctl", ["dashboard", "--no-open", "--listen", port, "--config", path.join(mock.folder, "mesh.yaml")]);
      await url(again);
      await page.locator('.banner[data-key="lost"]').getByText("started again since").waitFor();
      again.kill("SIGINT");
      assert.equal(await again.ended, 0);
      await page.finish();
    });
  },

  async "it fits on a phone, reads in both colour schemes, and keeps still where that is wished"() {
    await withMock({ count: 6 }, async (target, mock) => {
      mock.nodes[4].status = "offline";
      mock.nodes[2].status = "degraded";
      for (const [width, colorScheme] of [[360, "light"], [768, "dark"], [1440, "light"]]) {
        const page = await open(target, { viewport: { width, height: 800 }, colorScheme, reducedMotion: width === 768 ? "reduce" : "no-preference" });
        await row(page, "requests", "ct11").waitFor();
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `wider than ${width}`);
        for (const [pair, ratio] of await page.evaluate(contrasts)) assert.ok(ratio >= 4.5, `${pair} ${colorScheme}: ${ratio}`);
        if (width === 768) {
          await page.waitForTimeout(1500);
          assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
          assert.ok(await page.evaluate(() => {
            const { width: w, height: h } = document.getElementById("pulses");
            return document.getElementById("pulses").getContext("2d").getImageData(0, 0, w, h).data.every((value) => value === 0);
          }), "nothing moves on the map");
        }
        const nameless = await page.evaluate(() => [...document.querySelectorAll("button, [role=button], [role=img], input")].filter((each) =>
          !(each.getAttribute("aria-label") || each.textContent.trim() || (each.labels && each.labels.length))).map((each) => each.outerHTML));
        assert.deepEqual(nameless, []);
        await page.screenshot({ path: path.join(process.env.MESH_DASHBOARD_TOOLS, `seen-${width}.png`) });
        await page.finish();
      }
    });
  },

  async "two hundred nodes"() {
    await withMock({ count: 200, perSecond: 1 }, async (target, mock) => {
      mock.nodes[7].status = "offline";
      const page = await open(target);
      await page.locator("#nodes .node").nth(199).waitFor({ state: "attached" });
      await page.waitForTimeout(2000);
      const seen = await page.evaluate(frames, 5000);
      console.log(`      ${seen.frames} frames in ${seen.seconds} s, ${seen.middle} ms in the middle, 95 % within ${seen.most} ms; longest task ${seen.longest} ms (software rendering, ${os.cpus().length} cores, load ${os.loadavg()[0].toFixed(1)})`);
      assert.ok(seen.longest < 5000, "the main thread is blocked for seconds");
      await page.hover('#nodes .node[data-name="ct123"]');
      await page.locator("#nodes .label", { hasText: "ct123 · coder" }).waitFor();
      // This host's own and as many others as are read at once.
      await page.locator("#views").getByText("49 live views read").waitFor();
      await row(page, "list", "ct309").getByText("not read").waitFor();
      assert.equal(await page.locator("#census").getAttribute("aria-label"), "199 online, 1 offline");
      assert.equal(await page.locator("#census i").count(), 2);
      await row(page, "list", "ct110").click();
      await page.getByRole("dialog").getByText("Traffic now").waitFor();
      await page.finish();
    });
  },
};

// Run in the page: how well each colour of text can be read on what it stands on.
function contrasts() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const light = (name) => {
    probe.style.color = `var(${name})`;
    const parts = getComputedStyle(probe).color.match(/\d+/g).slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const pairs = [["--text", "--ground"], ["--text", "--surface"], ["--muted", "--ground"], ["--muted", "--surface"], ["--muted", "--raised"]];
  for (const colour of ["--good", "--warn", "--bad", "--accent"]) pairs.push([colour, "--surface"], [colour, `${colour}-soft`], ["--text", `${colour}-soft`]);
  const found = pairs.map(([front, back]) => {
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    return [`${front} on ${back}`, Math.round(((a + 0.05) / (b + 0.05)) * 100) / 100];
  });
  probe.remove();
  return found;
}

// Run in the page: how long frames and tasks take.
function frames(ms) {
  return new Promise((resolve) => {
    const times = [];
    const tasks = [0];
    new PerformanceObserver((list) => tasks.push(...list.getEntries().map((each) => Math.round(each.duration)))).observe({ entryTypes: ["longtask"] });
    const begin = performance.now();
    let last = begin;
    const turn = (time) => {
      times.push(time - last);
      last = time;
      if (time - begin < ms) return requestAnimationFrame(turn);
      times.sort((a, b) => a - b);
      const at = (share) => Math.round(times[Math.floor((times.length - 1) * share)]);
      resolve({ frames: times.length, seconds: Math.round((last - begin) / 100) / 10, middle: at(0.5), most: at(0.95), longest: Math.max(...tasks) });
    };
    requestAnimationFrame(turn);
  });
}

// The pictures of deploy/docs/dashboard.md, after a while so that the charts have something to show.
async function screenshots(to, seconds) {
  await withMock({ count: 8, perSecond: 0.9, flowsEach: 3 }, async (target, mock) => {
    mock.nodes[5].status = "offline";
    mock.nodes[2].status = "degraded";
    mock.nodes[1].days = 9;
    console.log(`waiting ${seconds} s for history`);
    for (let i = 0; i < 6; i += 1) setTimeout(() => mock.change(["joined", "updated", "recovered", "degraded", "stale", "left"][i], mock.nodes[i].name), (seconds * 1000 * i) / 7);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    for (const [name, width, height, colorScheme] of [["1440", 1440, 1050, "light"], ["768", 768, 1180, "light"], ["360", 360, 760, "light"], ["dark", 1440, 1050, "dark"]]) {
      const page = await open(target, { viewport: { width, height }, colorScheme });
      await page.waitForTimeout(7000);
      if (name === "dark") {
        await row(page, "requests", "→").first().click();
        await page.getByRole("dialog").getByText("Times").waitFor();
        await page.waitForTimeout(500);
      }
      await page.screenshot({ path: path.join(to, `dashboard-${name}.png`) });
      await page.finish();
    }
  });
}

const args = process.argv.slice(2);
if (args[0] === "--screenshots") {
  await screenshots(path.resolve(args[1]), Number(args[2] || 330));
} else {
  for (const [name, test] of Object.entries(tests)) {
    if (args.length && !args.some((word) => name.includes(word))) continue;
    const begin = Date.now();
    console.log(`test ${name}`);
    try {
      await test();
    } catch (error) {
      const [message, ...stack] = error.stack.split("\n    at ");
      console.error(`  FAILED: ${message.slice(0, 3000)}\n    at ${stack.slice(0, 3).join("\n    at ")}`);
      process.exit(1);
    }
    console.log(`  ok, ${((Date.now() - begin) / 1000).toFixed(1)} s`);
  }
  if (demo.started) {
    demo.child.kill("SIGINT");
    await demo.child.ended;
  }
  console.log("all of the dashboard's tests passed");
}
await browser.close();
process.exit(0);
