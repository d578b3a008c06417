"use strict";
// The page's only program. What it shows was chosen by other hosts: it becomes text, never markup.
(() => {
  const MAX_ROWS = 60;
  const MAX_REFUSED = 100;
  const MAX_KEPT = 400;
  const FRESH_MS = 6000;
  const DAY_S = 86400;
  const SOON_DAYS = 14;
  const SVG = "http://www.w3.org/2000/svg";

  const state = {
    mesh: null, live: null, series: { stepMs: 10000, steps: 60, step: 0, points: new Map() },
    rows: new Map(), failed: new Map(), refused: new Map(), changes: [], filter: "", chosen: null, lastNews: 0, epochSkew: 0,
  };
  const $ = (id) => document.getElementById(id);
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ---- Elements

  function make(tag, properties, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") element.className = value;
      else if (key === "on") for (const [name, handler] of Object.entries(value)) element.addEventListener(name, handler);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }
  function draw(tag, attributes, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  // Text of other hosts stays by itself, whichever way it is written.
  const foreign = (text, name) => make("bdi", { class: name }, String(text));
  const soft = (...children) => make("span", { class: "soft" }, ...children);
  const strong = (...children) => make("span", { class: "strong" }, ...children);
  const badge = (text, kind) => make("span", { class: `badge ${kind || ""}` }, text);
  const arrow = () => make("span", { class: "arrow", "aria-label": "to" }, "→");
  function set(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // ---- Words

  const formats = [0, 1].map((digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  const number = (value, digits) => formats[digits].format(value);
  function rate(value) {
    if (!value) return "0";
    return value < 10 ? number(value, 1) : number(value, 0);
  }
  function span(ms) {
    if (ms === null || ms === undefined) return "–";
    if (ms < 1) return "<1 ms";
    if (ms < 1000) return `${number(ms, ms < 10 ? 1 : 0)} ms`;
    const s = ms / 1000;
    if (s < 60) return `${number(s, s < 10 ? 1 : 0)} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
    if (s < 2 * DAY_S) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / DAY_S)} days`;
  }
  const two = (value) => String(value).padStart(2, "0");
  function clock(ms) {
    const date = new Date(ms);
    return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  }
  function bytes(count) {
    const units = ["bytes", "KB", "MB", "GB", "TB"];
    let unit = 0;
    while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
    return `${number(count, unit && count < 10 ? 1 : 0)} ${units[unit]}`;
  }
  const plural = (count, one, many) => `${number(count, 0)} ${count === 1 ? one : many || `${one}s`}`;
  const now = () => Date.now() + state.epochSkew;
  const daysLeft = (ends) => Math.floor((ends - now() / 1000) / DAY_S);

  // What the codes of the sidecars' errors come to.
  const CODES = {
    no_destination: "the request does not say for which node or agent it is",
    bad_destination: "its destination cannot be read",
    not_in_mesh: "its destination is not in the mesh",
    browser_request: "a web page asked, which programs' ports refuse",
    connect_not_supported: "CONNECT is not supported there",
    body_too_large: "its body is larger than proxy.limits allows",
    bad_request: "it is not valid HTTP",
    headers_too_large: "its headers are larger than proxy.limits allows",
    uri_too_long: "its target is too long",
    method_not_allowed: "that method is not allowed there",
    body_too_slow: "its body came too slowly",
    deadline_exceeded: "its deadline passed before the answer",
    too_many_requests: "this peer has too many requests in flight",
    rate_limited: "this peer sends more requests than its rate allows",
    agent_busy: "the agent has as many requests as it takes at once",
    no_roster: "the sidecar has not heard from registryd yet",
    unknown_node: "no node of that name is registered",
    unknown_agent: "no node hosts an agent of that name",
    node_offline: "the node is offline",
    agent_offline: "all nodes that host the agent are offline",
    peer_unresolved: "the node's name has no address",
    peer_unreachable: "the node's sidecar cannot be reached",
    peer_busy: "this host has as many requests to the node as it may have",
    peer_timeout: "the node did not answer in time",
    peer_identity_mismatch: "who answered there has another node's certificate",
    peer_untrusted: "the certificate of who answered there is not trusted",
    peer_refused_us: "the node refused this node's certificate",
    peer_failed: "the connection to the node failed",
    agent_not_certified: "the node's certificate does not name the agent",
    identity_unusable: "the identity to be presented cannot be used",
    peer_not_allowed: "proxy.policy does not allow this peer",
    request_not_allowed: "a rule of the policy denies this request",
    backend_unreachable: "the agent's server does not accept connections",
    backend_failed: "the agent's server broke off its answer",
    registry_unavailable: "registryd does not answer",
    live_not_permitted: "proxy.live.peers does not name this node",
  };
  // What to do about connections that were refused before there was a request.
  const CAUSES = {
    timeout: "The peer began a handshake and did not go on: look at the network between, and whether a firewall drops large packets.",
    closed: "The peer broke off: it may not accept this node's certificate, or be a port scan or a health check by TCP.",
    not_tls: "Something speaks plain text to the port of the mesh: programs use their own sidecar, 127.0.0.1:3001.",
    incompatible: "The peer's TLS is too old or too restricted: see proxy.tls.min_version.",
    no_certificate: "The peer needs a certificate of the mesh's CA: meshctl invite, or meshctl ca issue-node.",
    unknown_issuer: "The peer's certificate is from another CA, or its CA bundle or this node's is out of date: meshctl doctor there.",
    outside_validity: "Renew the peer's certificate (meshctl ca renew), or set the clock that is wrong.",
    revoked: "The peer's certificate is revoked. If it is to be let in again, issue a new one.",
    revocation_list: "This node has no current revocation list: meshctl ca refresh-lists on the CA's host.",
    wrong_name: "The peer's certificate does not name a node as it should: issue a new one.",
    bad_certificate: "The peer's certificate cannot be used: issue a new one, for TLS clients.",
    refused_by_peer: "The peer does not accept this node's certificate: meshctl doctor there says why.",
    limit: "Too many at once: see proxy.limits of the node that refused.",
    policy: "proxy.policy of the node that refused does not let this peer in.",
  };
  const OUTCOMES = {
    cut_by_caller: "the caller went away before the answer was complete",
    cut_by_upstream: "the far side broke off its answer",
    cut_by_sidecar: "the sidecar ended it",
    error: "the sidecar answered with an error",
  };
  // What went wrong, in a word or two.
  function fault(ended) {
    if (ended.code) return ended.code;
    return ended.outcome === "complete" ? "agent" : ended.outcome.replaceAll("_", " ");
  }
  function why(ended) {
    if (ended.reason) return ended.reason;
    if (ended.code) return CODES[ended.code] || "the sidecar gives this code";
    if (OUTCOMES[ended.outcome]) return OUTCOMES[ended.outcome];
    return ended.status >= 500 ? "its server answered with this error" : "";
  }

  // ---- Requests: the two sidecars' accounts of one exchange are one hop

  function hops(rows) {
    const open = new Map();
    const all = [];
    for (const row of rows) {
      const base = row.traceId ? `${row.traceId} ${row.from} ${row.to}` : null;
      const side = row.direction === "outbound" ? "caller" : "callee";
      const list = base ? open.get(base) || [] : [];
      let hop = list.find((each) => !each[side]);
      if (!hop) {
        hop = { from: row.from, to: row.to, traceId: row.traceId, key: row.key };
        list.push(hop);
        all.push(hop);
        if (base) open.set(base, list);
      }
      hop[side] = row;
    }
    return all;
  }
  const first = (hop) => hop.caller || hop.callee;
  function callerName(hop) {
    if (hop.caller && hop.caller.asAgent) return hop.caller.asAgent;
    if (hop.callee && hop.callee.peer && hop.callee.peer.includes("@")) return hop.callee.peer;
    return hop.from || "?";
  }
  const agentName = (hop) => first(hop).agent || (hop.callee && hop.callee.agent);
  function calleeName(hop) {
    const agent = agentName(hop);
    if (agent && hop.to) return `${agent}@${hop.to}`;
    return agent || hop.to || "no node";
  }
  const hopFailed = (hop) => Boolean((hop.caller && hop.caller.failed) || (hop.callee && hop.callee.failed));
  // The one that refused knows why.
  const culprit = (hop) => (hop.callee && hop.callee.failed ? hop.callee : hop.caller && hop.caller.failed ? hop.caller : null);

  function matches(...texts) {
    if (!state.filter) return true;
    const all = texts.filter(Boolean).join(" ").toLowerCase();
    return state.filter.split(/\s+/).every((word) => all.includes(word));
  }
  const hopMatches = (hop) => {
    const row = first(hop);
    return matches(callerName(hop), calleeName(hop), hop.from, hop.to, row.method, row.path, row.code, row.status, row.traceId,
      hop.callee && hop.callee.code);
  };

  // ---- Lists: rows are buttons; one of them is in the tab order, arrow keys move between them

  const lists = {};
  function show(id, items, empty) {
    const list = $(id);
    const known = lists[id] || (lists[id] = new Map());
    const kept = new Map();
    let place = list.firstElementChild;
    for (const item of items) {
      // One of two that pass for the same.
      if (kept.has(item.key)) continue;
      let entry = known.get(item.key);
      if (!entry) {
        const row = item.still ? make("div", { class: "row" }) : make("button", { class: "row", type: "button", tabindex: "-1" });
        entry = { li: make("li", null, row), row, shown: null };
        if (!item.still) row.addEventListener("click", () => entry.item.open(row));
      }
      entry.item = item;
      if (entry.shown !== item.version) {
        entry.row.replaceChildren(...item.render());
        entry.shown = item.version;
      }
      if (item.update) item.update(entry.row);
      entry.row.dataset.row = `${id} ${item.key}`;
      kept.set(item.key, entry);
      known.delete(item.key);
      if (entry.li === place) place = place.nextElementSibling;
      else list.insertBefore(entry.li, place);
    }
    for (const entry of known.values()) entry.li.remove();
    list.querySelectorAll(":scope > .empty").forEach((each) => each.remove());
    if (!items.length) list.append(make("li", { class: "empty" }, ...empty()));
    lists[id] = kept;
    const rows = list.querySelectorAll("button.row");
    if (rows.length && !list.querySelector('button.row[tabindex="0"]')) rows[0].tabIndex = 0;
  }
  function showChosen() {
    for (const row of document.querySelectorAll("button.row")) row.classList.toggle("chosen", Boolean(state.chosen) && state.chosen.row === row.dataset.row);
  }
  const busy = (id) => $(id).matches(":focus-within") || (matchMedia("(hover: hover)").matches && $(id).matches(":hover"));
  document.addEventListener("keydown", (event) => {
    const row = event.target.closest && event.target.closest("button.row");
    if (!row || event.ctrlKey || event.altKey || event.metaKey) return;
    const rows = [...row.closest("ul").querySelectorAll("button.row")];
    const at = rows.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1, PageDown: at + 8, PageUp: at - 8 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focusRow(rows, rows[Math.max(0, Math.min(rows.length - 1, to))]);
  });
  document.addEventListener("focusin", (event) => {
    const row = event.target.closest && event.target.closest("button.row");
    if (row) [...row.closest("ul").querySelectorAll("button.row")].forEach((each) => { each.tabIndex = each === row ? 0 : -1; });
  });
  function focusRow(rows, row) {
    row.focus();
    row.scrollIntoView({ block: "nearest" });
  }

  // ---- What is shown in the lists

  function between(hop) {
    return make("span", { class: "strong" }, foreign(callerName(hop)), arrow(), foreign(calleeName(hop)));
  }
  function statusBadge(hop) {
    const row = culprit(hop) || first(hop);
    const status = row.status ? String(row.status) : "none";
    const kind = hopFailed(hop) ? "bad" : row.status >= 400 ? "warn" : row.status ? "good" : "";
    return badge(status, kind);
  }

  function showRequests() {
    const all = hops([...state.rows.values()].sort((a, b) => a.beganMs - b.beganMs));
    const ended = (hop) => Math.max(hop.caller ? hop.caller.seenMs : 0, hop.callee ? hop.callee.seenMs : 0);
    all.sort((a, b) => ended(b) - ended(a) || first(b).beganMs - first(a).beganMs);
    const wanted = all.filter(hopMatches);
    const paused = busy("requests") && lists.requests && lists.requests.size > 0 && !state.filterChanged;
    $("requests-count").classList.toggle("paused", Boolean(paused));
    const omitted = state.live && state.live.omitted ? `, ${number(state.live.omitted, 0)} not told one by one` : "";
    set($("requests-count"), wanted.length ? `${plural(wanted.length, "request")}${omitted}` : "");
    if (paused) return;
    show("requests", wanted.slice(0, MAX_ROWS).map((hop) => {
      const row = first(hop);
      return {
        key: hop.key,
        version: `${Boolean(hop.caller)} ${Boolean(hop.callee)} ${row.durationMs}`,
        open: (from) => openRequest(hop, from, `requests ${hop.key}`),
        render: () => [
          make("time", { class: "soft time" }, clock(ended(hop))),
          between(hop),
          make("span", { class: "soft" }, foreign(`${row.method} ${row.path}`)),
          make("span", { class: "end status" }, statusBadge(hop)),
          make("span", { class: "end took num" }, span(row.durationMs)),
        ],
      };
    }), () => state.filter ? ["Nothing matches the filter."]
      : [strong("No requests yet."), make("br"), "They show up here as soon as an agent asks another one. Try ",
        make("code", null, "curl http://127.0.0.1:3001/nodes/<node>/"), " on this host."]);
  }

  function showFailures() {
    const rows = [...state.failed.values()].sort((a, b) => a.beganMs - b.beganMs);
    const all = hops(rows).reverse();
    all.sort((a, b) => culprit(b).seenMs - culprit(a).seenMs);
    const refused = [...state.refused.values()].filter((each) => matches(each.peer, each.address, each.teller, each.cause, each.reason));
    const wanted = [...all.filter(hopMatches).map((hop) => failureRow(hop, culprit(hop))), ...refused.map(refusalRow)].sort((a, b) => b.seenMs - a.seenMs);
    const paused = busy("failures") && lists.failures && lists.failures.size > 0 && !state.filterChanged;
    $("failures-count").classList.toggle("paused", Boolean(paused));
    const omitted = state.live && state.live.refusedOmitted ? `, ${number(state.live.refusedOmitted, 0)} refused not told one by one` : "";
    set($("failures-count"), wanted.length || omitted ? `${wanted.length}${omitted}` : "");
    if (paused) return;
    show("failures", wanted.slice(0, MAX_ROWS), () => [state.filter ? "Nothing matches the filter." : "Nothing was refused, and nothing failed, in the time that is kept."]);
  }

  function failureRow(hop, row) {
    return {
      key: hop.key,
      seenMs: row.seenMs,
      version: `${row.key} ${row.durationMs}`,
      open: (from) => openRequest(hop, from, `failures ${hop.key}`),
      render: () => [
        between(hop),
        make("time", { class: "end soft" }, clock(row.seenMs)),
        make("span", { class: "soft" }, make("span", { class: "text-bad" }, foreign(fault(row))), ": ", foreign(why(row))),
        make("span", { class: "end" }, badge(row.status ? String(row.status) : "none", "bad")),
      ],
    };
  }
  // A peer that was turned away before it could ask. Who it is, is known only where its certificate was accepted.
  function refusalRow(refused) {
    const key = `refused ${refused.key}`;
    return {
      key,
      seenMs: refused.seenMs,
      version: `${refused.count} ${refused.seenMs}`,
      open: (from) => openRefused(refused, from, `failures ${key}`),
      render: () => [
        make("span", { class: "strong" }, foreign(refused.peer || refused.address), arrow(), foreign(refused.teller)),
        make("time", { class: "end soft" }, clock(refused.seenMs)),
        make("span", { class: "soft" }, make("span", { class: "text-bad" }, foreign(refused.cause)), ": ", foreign(refused.reason)),
        make("span", { class: "end" }, badge(refused.count > 1 ? `refused ${number(refused.count, 0)}×` : "refused", "bad")),
      ],
    };
  }

  function showFlight() {
    const live = state.live;
    const rows = live ? live.inFlight : [];
    const all = hops([...rows].sort((a, b) => a.beganMs - b.beganMs));
    const age = (hop) => Math.max(hop.caller ? hop.caller.ageMs : 0, hop.callee ? hop.callee.ageMs : 0);
    all.sort((a, b) => age(b) - age(a));
    const wanted = all.filter(hopMatches);
    const more = live && live.inFlightTotal > rows.length ? ` and ${plural(live.inFlightTotal - rows.length, "more", "more")}` : "";
    set($("flight-count"), wanted.length ? `${number(wanted.length, 0)}${more}` : "");
    const longest = Math.max(10000, ...wanted.map(age));
    show("flight", wanted.slice(0, MAX_ROWS).map((hop) => {
      const row = first(hop);
      return {
        key: hop.key,
        version: `${Boolean(hop.caller)} ${Boolean(hop.callee)} ${row.status} ${row.attempts}`,
        open: (from) => openRequest(hop, from, `flight ${hop.key}`),
        render: () => [
          between(hop),
          make("span", { class: "end num strong" }),
          make("span", { class: "soft" }, foreign(`${row.method} ${row.path}`)),
          make("span", { class: "end soft" }),
          make("span", { class: "age", "aria-hidden": "true" }, make("i")),
        ],
        update: (element) => {
          const [, time, , what, bar] = element.children;
          set(time, span(age(hop)));
          set(what, row.status ? `streaming, ${bytes(row.bytesOut)}` : row.attempts > 1 ? `attempt ${row.attempts}` : "waiting");
          bar.firstElementChild.style.width = `${Math.max(1, (age(hop) / longest) * 100)}%`;
        },
      };
    }), () => [state.filter ? "Nothing matches the filter." : "Nothing is in flight at the moment."]);
  }

  const FEEDS = {
    live: ["read live", "good"], notPermitted: ["not permitted", ""], away: ["no live view", "warn"], connecting: ["connecting", ""], waiting: ["not read", ""],
  };
  function feedOf(node) {
    if (node.status === "offline" && !node.local) return ["–", ""];
    return FEEDS[node.feed ? node.feed.state : "connecting"] || ["unknown", ""];
  }
  const statusKind = (status) => ({ online: "good", offline: "bad" }[status] || "warn");
  function ends(node) {
    if (!node.certificateEnds) return ["unknown", ""];
    const days = daysLeft(node.certificateEnds);
    if (days < 0) return ["ended", "text-bad"];
    return [plural(days, "day"), days < 3 ? "text-bad" : days < SOON_DAYS ? "text-warn" : ""];
  }
  function showNodes() {
    const nodes = state.mesh ? state.mesh.nodes : [];
    const wanted = nodes.filter((node) => matches(node.name, node.status, ...node.agents, ...node.capabilities, ...node.models));
    set($("list-count"), nodes.length ? (wanted.length === nodes.length ? String(nodes.length) : `${wanted.length} of ${nodes.length}`) : "");
    show("list", wanted.map((node) => {
      const [days, kind] = ends(node);
      const [feed, feedKind] = feedOf(node);
      return {
        key: node.name,
        version: JSON.stringify([node, days]),
        open: (from) => openNode(node.name, from, `list ${node.name}`),
        render: () => [
          strong(foreign(node.name), node.local ? soft(" here") : ""),
          make("span", { class: "ends" }, badge(node.status, statusKind(node.status))),
          make("span", { class: "soft" }, node.agents.length ? foreign(node.agents.join(", ")) : "no agents"),
          make("span", { class: `ends soft ${kind}`, title: "until its certificate ends" }, days === "unknown" ? "–" : days),
          make("span", { class: "feed" }, feed === "–" ? soft("–") : badge(feed, feedKind)),
        ],
      };
    }), () => nodes.length ? ["Nothing matches the filter."] : emptyMesh());
  }
  function showAgents() {
    const agents = state.mesh ? state.mesh.agents : [];
    const wanted = agents.filter((agent) => matches(agent.name, ...agent.nodes.map((place) => place.node)));
    set($("agents-count"), agents.length ? String(wanted.length) : "");
    show("agents", wanted.map((agent) => {
      const up = agent.nodes.filter((place) => place.status === "online").length;
      return {
        key: agent.name,
        version: JSON.stringify(agent),
        open: (from) => {
          if (agent.nodes.length === 1) return openNode(agent.nodes[0].node, from, `agents ${agent.name}`);
          return openAgent(agent.name, from, `agents ${agent.name}`);
        },
        render: () => [
          strong(foreign(agent.name)),
          badge(up === agent.nodes.length ? plural(up, "node") : `${up} of ${agent.nodes.length} up`, up ? (up < agent.nodes.length ? "warn" : "good") : "bad"),
          soft("on ", foreign(agent.nodes.map((place) => place.node).join(", "))),
        ],
      };
    }), () => agents.length ? ["Nothing matches the filter."] : ["No agents are registered. A node names its own in ", make("code", null, "registryd.agents"), "."]);
  }
  function showChanges() {
    const wanted = state.changes.filter((change) => matches(change.kind, change.node));
    show("changes", wanted.slice(-60).reverse().map((change) => ({
      key: change.serial,
      still: true,
      version: 1,
      render: () => [
        make("span", null, change.node ? strong(foreign(change.node), " ") : "", soft(foreign(change.kind))),
        make("time", { class: "end soft" }, clock(change.atMs)),
      ],
    })), () => ["No node has come, gone or changed since the page knows."]);
  }
  function emptyMesh() {
    return [strong("No nodes are registered yet."), make("br"),
      "A node appears as soon as its registryd runs; further ones join with ", make("code", null, "meshctl invite <node>"), " on the CA's host."];
  }

  // ---- Banners: what is wrong, and what to do

  function banner(key, kind, title, ...text) {
    return { key, kind, title, text, version: `${kind} ${title} ${text.join("")}` };
  }
  function banners() {
    const all = [];
    const { mesh } = state;
    if (state.connection === "lost") {
      all.push(banner("lost", "bad", "The connection to meshctl is lost; trying again.",
        "What is shown is how things were. If `meshctl dashboard` has ended, start it again and open the URL that it prints."));
    } else if (state.connection === "ended") {
      all.push(banner("lost", "bad", "This page is no longer let in.",
        "`meshctl dashboard` was started again since, or the browser has dropped its cookie. Open the URL that it has printed."));
    } else if (state.connection === "full") {
      all.push(banner("lost", "bad", "The dashboard is open in too many windows.", "Close some of the others; this one tries again by itself."));
    }
    if (!mesh) return all;
    if (mesh.registry.state === "away") {
      all.push(banner("registry", "bad", "registryd does not answer: nodes, agents and states are the last ones known.", mesh.registry.detail));
    }
    if (mesh.sidecar && mesh.sidecar.state !== "live" && mesh.sidecar.state !== "connecting") {
      all.push(banner("sidecar", "bad", "The sidecar of this host does not answer: there is no live traffic to show.", mesh.sidecar.detail));
    }
    for (const problem of mesh.registry.state === "away" ? [] : mesh.problems) {
      all.push(banner(`problem ${problem}`, "warn", "registryd reports a problem of this node.", problem));
    }
    const others = mesh.nodes.filter((node) => !node.local && node.status !== "offline" && node.feed);
    const closed = others.filter((node) => node.feed.state === "notPermitted");
    if (closed.length && mesh.sidecar && mesh.sidecar.state === "live") {
      const names = closed.slice(0, 4).map((node) => node.name).join(", ") + (closed.length > 4 ? ` and ${closed.length - 4} more` : "");
      const one = closed.length === 1;
      all.push(banner("closed", "info", one ? `${names} does not show this node what it carries.` : `${closed.length} nodes do not show this node what they carry: ${names}.`,
        `Of ${one ? "its" : "their"} traffic, what other nodes tell of is shown. To see all of it, name ${mesh.node || "this node"} in proxy.live.peers ${one ? "there, and reload its" : "of each, and reload their"} mesh-proxy.`));
    }
    return all;
  }
  let shownBanners = "";
  function showBanners() {
    const all = banners();
    const version = all.map((each) => each.version).join("\n");
    if (version === shownBanners) return;
    shownBanners = version;
    $("banners").replaceChildren(...all.map((each) =>
      make("div", { class: `banner ${each.kind}`, "data-key": each.key }, make("strong", null, foreign(each.title)), make("p", null, foreign(each.text.join(""))))));
  }

  // ---- Charts

  const charts = new WeakMap();
  function chart(place, label, lines, steps, step, shape) {
    const version = JSON.stringify([label, step, lines.map((line) => [...line.points])]);
    if (charts.get(place) === version) return;
    charts.set(place, version);
    const width = 300;
    const height = 58;
    const from = step - steps + 1;
    const x = (at) => ((at - from) / (steps - 1)) * width;
    const values = lines.flatMap((line) => [...line.points.values()]).filter((value) => value !== null);
    const top = nice(Math.max(shape.least, ...values));
    const y = (value) => height - (Math.min(value, top) / top) * height;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
    for (const at of [0, 0.5, 1]) svg.append(draw("path", { class: "grid", d: `M0 ${height * at}H${width}` }));
    for (const line of lines) {
      let path = "";
      let area = "";
      let run = [];
      const flush = () => {
        if (!run.length) return;
        const points = run.length === 1 ? [run[0], [run[0][0] + 1.5, run[0][1]]] : run;
        const text = points.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
        path += `M${text}`;
        area += `M${points[0][0].toFixed(1)} ${height}L${text}L${points[points.length - 1][0].toFixed(1)} ${height}Z`;
        run = [];
      };
      for (let at = from; at <= step; at += 1) {
        const value = line.points.has(at) ? line.points.get(at) : line.gap;
        if (value === null || value === undefined) flush();
        else run.push([x(at), y(value)]);
      }
      flush();
      if (!line.bare) svg.append(draw("path", { class: `area ${line.kind}`, d: area || "M0 0" }));
      svg.append(draw("path", { class: line.kind, d: path || "M0 0" }));
    }
    const minutes = Math.round((steps * state.series.stepMs) / 60000);
    place.replaceChildren(make("span", { class: "top" }, shape.unit(top)), svg,
      make("div", { class: "axis", "aria-hidden": "true" }, make("span", null, `${minutes} min ago`), make("span", null, "now")));
  }
  function nice(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    for (const step of [1, 2, 2.5, 5, 10]) if (value <= step * power) return step * power;
    return value;
  }
  // The first steps are those before the dashboard began: nothing is known of them.
  function traffic(series, value, gap) {
    const points = new Map();
    for (const point of series.points.values()) points.set(point.step, value(point));
    for (let at = Math.max(0, series.step - series.steps + 1); at <= series.step; at += 1) if (!points.has(at)) points.set(at, gap);
    return points;
  }
  const perSecond = (series) => (point) => point.requests / (series.stepMs / 1000);
  const share = (point) => (point.requests ? point.failures / point.requests : null);
  const recent = (series) => [...series.points.values()].filter((point) => point.step > series.step - 6);

  function showTiles() {
    const { series, live, mesh } = state;
    // The step under way is not whole yet.
    const whole = { ...series, step: Math.max(0, series.step - 1) };
    const figure = (tile, ...texts) => {
      const places = $(tile).querySelectorAll(".figure b");
      texts.forEach((text, i) => set(places[i], text));
    };
    const rates = traffic(whole, perSecond(series), 0);
    figure("tile-rate", live ? rate(live.rate) : "–");
    chart($("tile-rate").querySelector(".chart"), "Requests a second over the last ten minutes",
      [{ kind: "accent", points: rates }], series.steps, whole.step, { least: 1, unit: (top) => `${number(top, 1)}/s` });

    const last = recent(series);
    const requests = last.reduce((sum, point) => sum + point.requests, 0);
    const failures = last.reduce((sum, point) => sum + point.failures, 0);
    const failing = requests ? (100 * failures) / requests : null;
    const percent = failing === null ? "–" : `${number(failing, failing < 10 ? 1 : 0)} %`;
    figure("tile-failures", percent);
    $("tile-failures").querySelector(".figure").classList.toggle("bad", failing >= 1);
    chart($("tile-failures").querySelector(".chart"), `Share of failed requests over the last ten minutes, in the last minute ${percent}`,
      [{ kind: "bad", points: traffic(whole, (point) => (share(point) === null ? null : share(point) * 100), null) }], series.steps, whole.step,
      { least: 5, unit: (top) => `${number(top, 0)} %` });

    const latest = last.filter((point) => point.p50 !== null);
    const weighted = (key) => {
      const count = latest.reduce((sum, point) => sum + point.requests, 0);
      return count ? latest.reduce((sum, point) => sum + point[key] * point.requests, 0) / count : null;
    };
    figure("tile-latency", span(weighted("p50")), span(weighted("p95")));
    chart($("tile-latency").querySelector(".chart"), `Time to the first byte over the last ten minutes: half within ${span(weighted("p50"))}, 95 % within ${span(weighted("p95"))}`,
      [{ kind: "p95", bare: true, points: traffic(whole, (point) => point.p95, null) }, { kind: "accent", points: traffic(whole, (point) => point.p50, null) }],
      series.steps, whole.step, { least: 10, unit: span });

    const nodes = mesh ? mesh.nodes : [];
    const online = nodes.filter((node) => node.status === "online").length;
    const value = $("tile-nodes").querySelector(".figure b");
    if (value.textContent !== `${online}/${nodes.length}`) {
      value.replaceChildren(String(online), make("small", null, `/${nodes.length}`));
      $("tile-nodes").querySelector(".figure").classList.toggle("bad", nodes.some((node) => node.status === "offline"));
    }
    const order = ["online", "updating", "degraded", "offline"];
    const census = nodes.map((node) => node.status).sort((a, b) => order.indexOf(a) - order.indexOf(b));
    if ($("census").dataset.shown !== census.join()) {
      $("census").dataset.shown = census.join();
      $("census").setAttribute("role", "img");
      $("census").setAttribute("aria-label", order.map((word) => [word, census.filter((each) => each === word).length]).filter(([, count]) => count).map(([word, count]) => `${count} ${word}`).join(", "));
      // One piece for each node, or where these would be too thin, for each state.
      const pieces = census.length <= 48 ? census.map((status) => [status, 1]) : order.map((status) => [status, census.filter((each) => each === status).length]);
      $("census").replaceChildren(...pieces.filter(([, count]) => count).map(([status, count]) => {
        const piece = make("i", { class: status });
        piece.style.flexGrow = count;
        return piece;
      }));
    }
    const agents = mesh ? mesh.agents.length : 0;
    const read = nodes.filter((node) => node.feed && node.feed.state === "live").length;
    set($("views"), nodes.length ? `${plural(agents, "agent")}, ${plural(read, "live view")} read` : "");
    const known = nodes.filter((node) => node.certificateEnds).sort((a, b) => a.certificateEnds - b.certificateEnds);
    const note = known.length ? [`${ends(known[0])[0]} until the first certificate ends`, known[0].name] : ["No certificate has been seen yet", ""];
    const text = note.filter(Boolean).join(" · ");
    if ($("certificates").textContent !== text) {
      $("certificates").className = `note ${known.length ? ends(known[0])[1] : ""}`;
      $("certificates").replaceChildren(foreign(text));
    }
  }

  // ---- The map

  const map = { places: new Map(), mode: "card", edges: [], elements: new Map(), size: "", colours: null, order: [], pointed: null, version: "",
    label: draw("g", { class: "label", "aria-hidden": "true", visibility: "hidden" }, draw("rect", { y: -11, height: 22, rx: 6 }), draw("text", { y: 4.5, "text-anchor": "middle" })) };

  function mapNodes() {
    const nodes = state.mesh ? [...state.mesh.nodes] : [];
    const names = new Set(nodes.map((node) => node.name));
    nodes.sort((a, b) => (b.local - a.local) || a.name.localeCompare(b.name, "en", { numeric: true }));
    const outside = new Set();
    for (const edge of state.live ? state.live.edges : []) {
      for (const end of [edge.from, edge.to]) if (end && !names.has(end)) outside.add(end);
    }
    for (const name of [...outside].sort().slice(0, 8)) nodes.push({ name, status: "outside", agents: [], outside: true });
    return nodes;
  }

  // Rings from the outside to the inside, as many nodes on each as fit.
  function layout(count, width, height) {
    const perimeter = (a, b) => Math.PI * (3 * (a + b) - Math.sqrt((3 * a + b) * (a + 3 * b)));
    const modes = [
      { mode: "card", w: Math.min(158, Math.max(104, width * 0.3)), h: 48, gap: 26 },
      { mode: "dot", w: 84, h: 62, gap: 4 },
      { mode: "tiny", w: 26, h: 26, gap: 2 },
    ];
    for (const shape of modes) {
      const places = [];
      const a = width / 2 - shape.w / 2 - 14;
      const b = height / 2 - shape.h / 2 - 14;
      if (a < 0 || b < 0) continue;
      if (count === 1) return { ...shape, places: [[width / 2, height / 2]] };
      if (shape.mode === "card") {
        if (count > 12 || (count > 4 && width < 560)) continue;
        for (let i = 0; i < count; i += 1) places.push(on(a, b, i / count, width, height));
        const tight = places.some((p, i) => places.some((q, j) => j > i && Math.abs(p[0] - q[0]) < shape.w + 10 && Math.abs(p[1] - q[1]) < shape.h + 12));
        if (tight) continue;
        return { ...shape, places };
      }
      let left = count;
      let ring = 0;
      const rings = [];
      while (left > 0) {
        const ra = a - ring * (shape.w + shape.gap) * 1.15;
        const rb = b - ring * (shape.h + shape.gap) * 1.15;
        if (ra <= shape.w / 2 || rb <= shape.h / 2) {
          if (ra > 0 && rb > 0 && left === 1) rings.push([0, 0, 1]), left = 0;
          break;
        }
        const room = Math.max(1, Math.floor(perimeter(ra, rb) / (shape.w + shape.gap)));
        rings.push([ra, rb, Math.min(room, left)]);
        left -= Math.min(room, left);
        ring += 1;
      }
      if (left > 0 && shape.mode !== "tiny") continue;
      if (left > 0) return grid(count, width, height);
      rings.forEach(([ra, rb, many], i) => {
        for (let k = 0; k < many; k += 1) places.push(on(ra, rb, (k + (i % 2) * 0.5) / many, width, height));
      });
      return { ...shape, places };
    }
    return grid(count, width, height);
  }
  // Evenly spaced along the ellipse, from the top.
  function on(a, b, part, width, height) {
    const steps = 180;
    const lengths = [0];
    for (let i = 1; i <= steps; i += 1) {
      const [s, t] = [((i - 1) / steps) * 2 * Math.PI, (i / steps) * 2 * Math.PI];
      lengths.push(lengths[i - 1] + Math.hypot(a * (Math.sin(t) - Math.sin(s)), b * (Math.cos(t) - Math.cos(s))));
    }
    const wanted = (part % 1) * lengths[steps];
    let i = lengths.findIndex((length) => length >= wanted);
    if (i < 1) i = 1;
    const angle = ((i - 1 + (wanted - lengths[i - 1]) / (lengths[i] - lengths[i - 1])) / steps) * 2 * Math.PI;
    return [width / 2 + a * Math.sin(angle), height / 2 - b * Math.cos(angle)];
  }
  function grid(count, width, height) {
    const columns = Math.max(1, Math.ceil(Math.sqrt((count * width) / height)));
    const lines = Math.ceil(count / columns);
    const places = [];
    for (let i = 0; i < count; i += 1) places.push([((i % columns) + 0.5) * (width / columns), (Math.floor(i / columns) + 0.5) * (height / lines)]);
    return { mode: "tiny", w: 20, h: 20, places };
  }

  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  function showMap() {
    const box = $("map").getBoundingClientRect();
    const [width, height] = [Math.round(box.width), Math.round(box.height)];
    if (!width || !height) return;
    const nodes = mapNodes();
    const size = `${width} ${height} ${devicePixelRatio}`;
    const version = `${size} ${nodes.map((node) => [node.name, node.status, node.agents, node.local].join("/")).join()}`;
    if (version !== map.version) {
      map.version = version;
      const plan = layout(nodes.length, width, height);
      map.mode = plan.mode;
      map.plan = plan;
      map.places = new Map(nodes.map((node, i) => [node.name, plan.places[i]]));
      map.order = nodes.map((node) => node.name);
      if (size !== map.size) {
        map.size = size;
        for (const id of ["edges", "pulses"]) {
          $(id).width = width * devicePixelRatio;
          $(id).height = height * devicePixelRatio;
        }
      }
      const svg = $("nodes");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const focused = document.activeElement && document.activeElement.closest && document.activeElement.closest(".node");
      const focusName = focused && focused.dataset.name;
      const elements = nodes.map((node) => drawNode(node, plan));
      map.elements = new Map(elements.map((element) => [element.dataset.name, element]));
      svg.replaceChildren(...elements, map.label);
      const again = map.elements.get(focusName) || map.elements.get(map.order[0]);
      if (again) again.setAttribute("tabindex", "0");
      if (focusName && map.elements.has(focusName)) map.elements.get(focusName).focus();
    }
    for (const node of nodes) {
      const element = map.elements.get(node.name);
      element.classList.toggle("dim", !matches(node.name, node.status, ...node.agents));
      element.classList.toggle("chosen", Boolean(state.chosen) && state.chosen.node === node.name);
    }
    $("map-empty").hidden = nodes.length > 0;
    if (!nodes.length) {
      const away = state.mesh && state.mesh.registry.state === "away";
      $("map-empty").replaceChildren(...(away ? [strong("registryd does not answer."), "The map appears as soon as it does: see above."]
        : state.mesh && state.mesh.registry.state === "live" ? emptyMesh() : ["Asking registryd …"]));
    }
    map.edges = (state.live ? state.live.edges : []).map(curve).filter(Boolean);
    const busiest = [...map.edges].sort((a, b) => b.rate - a.rate).slice(0, 5);
    set($("map-summary"), `${plural(nodes.length, "node")}. Traffic: ${busiest.map((edge) => `${edge.from} to ${edge.to}, ${rate(edge.rate)} a second${edge.failures ? `, ${rate(edge.failures)} failing` : ""}`).join("; ") || "none"}.`);
    showLabel();
    drawEdges();
    wake();
  }

  function drawNode(node, plan) {
    const [x, y] = map.places.get(node.name);
    const own = node.local ? " own" : "";
    const group = draw("g", { class: `node ${plan.mode === "card" ? "card" : "dot"}${plan.mode === "tiny" ? " tiny" : ""} ${node.status}${own}`,
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, role: "button", tabindex: "-1",
      "aria-label": `${node.name}, ${node.status}${node.local ? ", this host" : ""}${node.agents.length ? `, agents ${node.agents.join(", ")}` : ""}` });
    group.dataset.name = node.name;
    const text = (properties, value) => { const element = draw("text", properties); element.textContent = value; return element; };
    if (plan.mode === "card") {
      const [w, h] = [plan.w, plan.h];
      const room = Math.floor((w - 44) / 7.4);
      const sub = node.outside ? "outside the registry" : node.agents.length ? node.agents.join(", ") : "no agents";
      group.append(
        draw("rect", { class: "halo", x: -w / 2 - 4, y: -h / 2 - 4, width: w + 8, height: h + 8, rx: 15 }),
        draw("rect", { class: "shape", x: -w / 2, y: -h / 2, width: w, height: h, rx: 11 }),
        draw("circle", { class: "lamp", cx: -w / 2 + 18, cy: 0, r: 7 }), sign(node.status, -w / 2 + 18, 0),
        text({ class: "name", x: -w / 2 + 33, y: -3 }, cut(node.name, room)),
        text({ class: "sub", x: -w / 2 + 33, y: 13 }, cut(sub, Math.floor(room * 1.1))));
    } else {
      const r = plan.mode === "dot" ? 12 : Math.min(7, plan.w / 3);
      group.append(draw("circle", { class: "halo", r: r + 5 }), draw("circle", { class: "shape", r }));
      if (plan.mode === "dot") {
        group.append(draw("circle", { class: "lamp", r: r - 4.5 }), sign(node.status, 0, 0),
          text({ class: "name", y: r + 15, "text-anchor": "middle" }, cut(node.name, 11)));
      } else {
        group.append(draw("circle", { class: "lamp", r: r - 2.5 }));
      }
    }
    return group;
  }
  // The state is told by a sign too, not by colour alone.
  function sign(status, x, y) {
    const d = { degraded: "M0 -3.4V.6M0 3.2v.1", updating: "M-2.8 .2 0 -2.8 2.8 .2M0 -2.6V3.2", offline: "M-2.5 -2.5 2.5 2.5M2.5 -2.5 -2.5 2.5" }[status] || "";
    return draw("path", { class: "sign", d: d || "M0 0", transform: `translate(${x} ${y})` });
  }

  function curve(edge) {
    const [from, to] = [map.places.get(edge.from), map.places.get(edge.to)];
    if (!from || !to) return null;
    const bad = edge.rate ? edge.failures / edge.rate : 0;
    const shared = { ...edge, bad, shown: matches(edge.from, edge.to, ...agentsOf(edge.from), ...agentsOf(edge.to)) };
    if (edge.from === edge.to) {
      // From this node to itself: a loop above it.
      const [x, y] = from;
      const reach = map.mode === "card" ? 44 : 26;
      const side = map.mode === "card" ? map.plan.w / 2 - 22 : 7;
      const up = y > reach + 24 ? -1 : 1;
      const edgeOf = map.mode === "card" ? map.plan.h / 2 : 10;
      return { ...shared, a: [x + side - 16, y + up * edgeOf], b: [x + side - 22, y + up * (edgeOf + reach)], c: [x + side + 22, y + up * (edgeOf + reach)], d: [x + side + 6, y + up * edgeOf], loop: true };
    }
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    const length = Math.hypot(dx, dy) || 1;
    const bend = Math.min(64, length * 0.16);
    const [nx, ny] = [(-dy / length) * bend, (dx / length) * bend];
    // Also towards the middle, so that lines between neighbours do not run behind whoever is between them.
    const [width, height] = map.size.split(" ").map(Number);
    const [cx, cy] = [(width / 2 - (from[0] + to[0]) / 2) * 0.3, (height / 2 - (from[1] + to[1]) / 2) * 0.3];
    const at = (part) => [from[0] + dx * part + nx + cx, from[1] + dy * part + ny + cy];
    return { ...shared, a: from, b: at(0.33), c: at(0.67), d: to };
  }
  function agentsOf(name) {
    const node = state.mesh && state.mesh.nodes.find((each) => each.name === name);
    return node ? node.agents : [];
  }
  function point({ a, b, c, d }, t) {
    const s = 1 - t;
    const mix = (i) => s * s * s * a[i] + 3 * s * s * t * b[i] + 3 * s * t * t * c[i] + t * t * t * d[i];
    return [mix(0), mix(1)];
  }
  // Where the line leaves the shape of a node.
  function border(edge, t, step) {
    if (edge.loop || map.mode !== "card") return t;
    const end = step > 0 ? edge.a : edge.d;
    for (let at = t; at > 0.01 && at < 0.99; at += step) {
      const [x, y] = point(edge, at);
      if (Math.abs(x - end[0]) > map.plan.w / 2 + 2 || Math.abs(y - end[1]) > map.plan.h / 2 + 2) return at;
    }
    return t;
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { accent: of("--accent"), bad: of("--bad"), surface: of("--surface"), text: of("--text"), muted: of("--muted"), line: of("--line"), sans: of("--sans") };
  }
  function canvas(id) {
    const context = $(id).getContext("2d");
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, $(id).width, $(id).height);
    return context;
  }

  // Those of the node that is pointed at or focused stand out; where there are many, all others stay back.
  const crowded = () => map.edges.length > 60;
  function visible(edge) {
    if (!edge.shown) return 0.15;
    if (map.pointed) return edge.from === map.pointed || edge.to === map.pointed ? 1.6 : crowded() ? 0.12 : 0.45;
    return crowded() ? 0.45 : 1;
  }
  function pointAt(name) {
    if (map.pointed === name) return;
    map.pointed = name;
    showLabel();
    drawEdges();
  }
  // Where names find no room at the nodes, that of one of them is shown above all: the one pointed at, else this host.
  function showLabel() {
    const own = state.mesh && state.mesh.nodes.find((node) => node.local);
    const name = map.places.has(map.pointed) ? map.pointed : own && own.name;
    const place = map.mode === "tiny" && map.places.get(name);
    map.label.setAttribute("visibility", place ? "visible" : "hidden");
    if (!place) return;
    const [ground, text] = map.label.children;
    text.textContent = cut([name, ...agentsOf(name)].join(" · "), 40);
    const width = text.getComputedTextLength() + 14;
    const [right] = map.size.split(" ").map(Number);
    const x = Math.max(width / 2 + 2, Math.min(right - width / 2 - 2, place[0]));
    map.label.setAttribute("transform", `translate(${x.toFixed(1)} ${(place[1] > 46 ? place[1] - 24 : place[1] + 24).toFixed(1)})`);
    ground.setAttribute("x", -width / 2);
    ground.setAttribute("width", width);
  }
  // Once a second; only the pulses move in between.
  function drawEdges() {
    const c = (map.colours = map.colours || colours());
    const context = canvas("edges");
    context.lineCap = "round";
    const slim = map.mode === "tiny" ? 0.6 : 1;
    for (const edge of map.edges) {
      const wide = (1.5 + 1.9 * Math.log10(1 + edge.rate * 2)) * slim;
      edge.wide = Math.min(7, wide);
      const line = () => { context.beginPath(); context.moveTo(...edge.a); context.bezierCurveTo(...edge.b, ...edge.c, ...edge.d); context.stroke(); };
      context.lineWidth = edge.wide;
      context.setLineDash(edge.rate ? [] : edge.inFlight ? [1, 5] : []);
      context.strokeStyle = c.accent;
      context.globalAlpha = Math.min(1, (edge.rate ? 0.5 : edge.inFlight ? 0.75 : 0.16) * visible(edge));
      if (edge.bad < 0.999) line();
      if (edge.bad > 0) {
        context.strokeStyle = c.bad;
        context.globalAlpha = Math.min(1, 0.8 * visible(edge));
        context.setLineDash([7, 6 + 16 * (1 - edge.bad)]);
        line();
      }
      context.setLineDash([]);
    }
    context.globalAlpha = 1;
    for (const edge of map.edges) {
      if (!edge.shown) continue;
      if (reduced.matches && (edge.rate || edge.inFlight)) head(context, edge, c);
    }
    if (map.mode === "card" && map.edges.length <= 14) {
      context.font = `600 11.5px ${c.sans}`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      const taken = [...map.places.values()].map(([x, y]) => [x, y, map.plan.w / 2, map.plan.h / 2]);
      for (const edge of map.edges) {
        if (!edge.shown || (!edge.rate && !edge.inFlight)) continue;
        const text = edge.rate ? `${rate(edge.rate)}/s${edge.bad ? ` · ${number(edge.bad * 100, 0)} % failed` : ""}` : `${edge.inFlight} open`;
        const reach = context.measureText(text).width / 2 + 7;
        const free = ([x, y]) => taken.every(([tx, ty, w, h]) => Math.abs(x - tx) > w + reach + 1 || Math.abs(y - ty) > h + 11);
        const place = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74].map((t) => point(edge, t)).find(free);
        if (!place) continue;
        const [x, y] = place;
        taken.push([x, y, reach, 9]);
        edge.label = [x, y, reach];
        context.fillStyle = c.surface;
        context.beginPath();
        context.roundRect(x - reach, y - 9, reach * 2, 18, 9);
        context.fill();
        context.fillStyle = edge.bad ? c.bad : c.text;
        context.fillText(text, x, y + 0.5);
      }
    }
  }
  function head(context, edge, c) {
    const t = edge.loop ? 0.9 : border(edge, 0.95, -0.01) - 0.02;
    const [x, y] = point(edge, t);
    const [px, py] = point(edge, t - 0.03);
    const angle = Math.atan2(y - py, x - px);
    context.fillStyle = edge.bad > 0.5 ? c.bad : c.accent;
    context.beginPath();
    for (const [along, aside] of [[5, 0], [-5, 4.5], [-5, -4.5]]) {
      context.lineTo(x + Math.cos(angle) * along - Math.sin(angle) * aside, y + Math.sin(angle) * along + Math.cos(angle) * aside);
    }
    context.fill();
  }

  const TRAVEL_S = 1.7;
  function drawPulses(time) {
    const c = map.colours;
    const context = canvas("pulses");
    const dots = { accent: new Path2D(), bad: new Path2D() };
    for (const edge of map.edges) {
      if (!edge.shown || (!edge.rate && !edge.inFlight)) continue;
      if (map.pointed && crowded() && edge.from !== map.pointed && edge.to !== map.pointed) continue;
      const slow = !edge.rate;
      const period = slow ? TRAVEL_S * 2 : TRAVEL_S;
      const many = slow ? 1 : Math.max(1, Math.min(map.mode === "tiny" ? 3 : 7, Math.round(edge.rate * TRAVEL_S * 0.8)));
      const radius = map.mode === "tiny" ? 1.9 : Math.min(4.2, 2.4 + edge.wide * 0.28);
      for (let i = 0; i < many; i += 1) {
        const t = (time / 1000 / period + i / many + (edge.from.length * 0.13 + edge.to.length * 0.37)) % 1;
        const [x, y] = point(edge, t);
        if (edge.label && Math.abs(x - edge.label[0]) < edge.label[2] && Math.abs(y - edge.label[1]) < 11) continue;
        const path = i < Math.round(edge.bad * many) || (edge.bad && !i) ? dots.bad : dots.accent;
        path.moveTo(x + radius, y);
        path.arc(x, y, radius, 0, 6.3);
      }
    }
    context.fillStyle = c.accent;
    context.fill(dots.accent);
    context.fillStyle = c.bad;
    context.fill(dots.bad);
  }
  // Thirty frames a second where that is easy, fewer where drawing is slow, as without a graphics card.
  const pace = { frame: 0, drawn: 0, last: 0, wait: 33, late: 0 };
  function turn(time) {
    pace.frame = requestAnimationFrame(turn);
    pace.late = pace.late * 0.9 + Math.min(500, time - pace.last) * 0.1;
    pace.last = time;
    pace.wait = pace.late > 120 ? 250 : pace.late > 50 ? 100 : 33;
    if (time - pace.drawn < pace.wait - 4) return;
    pace.drawn = time;
    drawPulses(time);
  }
  function wake() {
    const wanted = !reduced.matches && !document.hidden && state.connection === "live" && map.edges.some((edge) => edge.rate || edge.inFlight);
    if (!wanted) {
      if (pace.frame) cancelAnimationFrame(pace.frame);
      pace.frame = 0;
      canvas("pulses");
    } else if (!pace.frame) {
      pace.last = performance.now();
      pace.frame = requestAnimationFrame(turn);
    }
  }

  $("map").addEventListener("click", (event) => {
    const node = event.target.closest(".node");
    if (node) openNode(node.dataset.name, node);
  });
  const nodeAt = (event) => { const node = event.target.closest && event.target.closest(".node"); return node ? node.dataset.name : null; };
  $("map").addEventListener("pointerover", (event) => pointAt(nodeAt(event)));
  $("map").addEventListener("pointerleave", () => pointAt(null));
  $("map").addEventListener("focusout", () => pointAt(null));
  $("map").addEventListener("focusin", (event) => {
    const node = event.target.closest(".node");
    pointAt(node ? node.dataset.name : null);
    if (node) for (const [, each] of map.elements) each.setAttribute("tabindex", each === node ? "0" : "-1");
  });
  $("map").addEventListener("keydown", (event) => {
    const node = event.target.closest(".node");
    if (!node) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return openNode(node.dataset.name, node);
    }
    const direction = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!direction) return;
    event.preventDefault();
    const [x, y] = map.places.get(node.dataset.name);
    let best = null;
    for (const [name, [px, py]] of map.places) {
      const [dx, dy] = [px - x, py - y];
      const along = dx * direction[0] + dy * direction[1];
      if (along <= 1) continue;
      const cost = along + 2.2 * Math.abs(dx * direction[1] - dy * direction[0]);
      if (!best || cost < best.cost) best = { name, cost };
    }
    if (best) map.elements.get(best.name).focus();
  });

  // ---- Details

  function open(title, chosen, from) {
    state.chosen = { ...chosen, from: (state.chosen && state.chosen.from && state.chosen.from.isConnected && $("details").contains(from)) ? state.chosen.from : from };
    $("details-title").replaceChildren(foreign(title));
    $("details").hidden = false;
    $("details-body").scrollTop = 0;
    $("details-title").focus({ preventScroll: true });
    refreshDetails();
    render();
  }
  function close() {
    if ($("details").hidden) return;
    $("details").hidden = true;
    const from = state.chosen && state.chosen.from;
    const name = state.chosen && state.chosen.node;
    state.chosen = null;
    const back = from && from.isConnected ? from : name && map.elements.get(name);
    if (back) back.focus();
    render();
  }
  $("details-close").addEventListener("click", close);

  async function ask(path) {
    try {
      const answer = await fetch(path, { cache: "no-store", credentials: "same-origin" });
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }

  const openRequest = (hop, from, row) => open(`${first(hop).method} ${first(hop).path}`, { kind: "request", hop, row }, from);
  const openRefused = (refused, from, row) => open(`Refused: ${refused.peer || refused.address}`, { kind: "refused", refused: refused.key, row }, from);
  const openNode = (name, from, row) => open(name, { kind: "node", node: name, row }, from);
  const openAgent = (name, from, row) => open(name, { kind: "agent", agent: name, row }, from);

  async function refreshDetails() {
    const chosen = state.chosen;
    if (!chosen) return;
    if (chosen.kind === "request") {
      const found = chosen.hop.traceId ? await ask(`trace/${encodeURIComponent(chosen.hop.traceId)}`) : null;
      if (state.chosen !== chosen) return;
      const rows = new Map();
      for (const row of [chosen.hop.caller, chosen.hop.callee]) if (row && row.durationMs !== undefined) rows.set(row.key, row);
      for (const row of found ? found.inFlight : [chosen.hop.caller, chosen.hop.callee].filter((each) => each && each.durationMs === undefined)) rows.set(row.key, row);
      for (const row of found ? found.ended : []) rows.set(row.key, row);
      const all = hops([...rows.values()].sort((a, b) => a.beganMs - b.beganMs || (a.direction === "outbound" ? -1 : 1)));
      fill(all.length ? requestDetails(all) : [soft("It has ended, and is no longer kept.")], JSON.stringify(all));
    } else if (chosen.kind === "refused") {
      const refused = state.refused.get(chosen.refused);
      fill(refused ? refusedDetails(refused) : [soft("It is no longer kept.")], JSON.stringify(refused || null));
    } else if (chosen.kind === "node") {
      const node = state.mesh && state.mesh.nodes.find((each) => each.name === chosen.node);
      const series = await ask(`series/${encodeURIComponent(chosen.node)}`);
      if (state.chosen !== chosen) return;
      fill(nodeDetails(chosen.node, node, series), JSON.stringify([node, series, edgesOf(chosen.node)]));
    } else {
      const agent = state.mesh && state.mesh.agents.find((each) => each.name === chosen.agent);
      fill(agentDetails(agent), JSON.stringify(agent));
    }
  }
  function fill(children, version) {
    const body = $("details-body");
    if (state.detailsShown === version && body.childElementCount) return;
    const focused = body.contains(document.activeElement) && document.activeElement.dataset.go;
    state.detailsShown = version;
    body.replaceChildren(...children);
    if (focused) {
      const again = [...body.querySelectorAll("[data-go]")].find((each) => each.dataset.go === focused);
      if (again) again.focus();
    }
  }
  function facts(...pairs) {
    return make("dl", { class: "facts" }, ...pairs.filter(Boolean).flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]));
  }
  const section = (title, ...children) => make("section", null, make("h3", null, title), ...children);

  function requestDetails(all) {
    const rows = all.flatMap((hop) => [hop.caller, hop.callee]).filter(Boolean);
    const main = all.find((hop) => state.chosen && (hop.from === state.chosen.hop.from && hop.to === state.chosen.hop.to)) || all[0];
    const row = first(main);
    const bad = culprit(main);
    const parts = [];
    parts.push(facts(
      ["Result", bad ? make("span", { class: "text-bad" }, foreign(`${bad.status || "no answer"}, ${fault(bad)}: ${why(bad)}`))
        : row.durationMs === undefined ? (row.status ? `${row.status}, streaming` : "waiting for the answer") : foreign(`${row.status || "no answer"}, ${row.outcome.replaceAll("_", " ")}`)],
      ["Took", row.durationMs === undefined ? `${span(row.ageMs)} so far` : span(row.durationMs)],
      ["Began", `${clock(row.beganMs)}.${String(row.beganMs % 1000).padStart(3, "0")}`],
      ["Bodies", `${bytes(row.bytesIn)} sent, ${bytes(row.bytesOut)} answered`],
      ["Trace", row.traceId ? make("code", null, foreign(row.traceId)) : "none"],
    ));
    all.forEach((hop, i) => parts.push(section(all.length > 1 ? `Its way, ${i + 1} of ${all.length}` : "Its way", way(hop))));
    parts.push(section("Times", bars(rows)));
    return parts;
  }
  function refusedDetails(refused) {
    return [
      facts(
        ["Reason", make("span", { class: "text-bad" }, foreign(`${refused.cause}: ${refused.reason}`))],
        ["Refused by", make("span", null, "mesh-proxy on ", foreign(refused.teller), ", before there was a request")],
        ["Peer", refused.peer ? foreign(refused.peer) : "not known: its certificate was not accepted"],
        ["Address", foreign(refused.address)],
        ["Last", `${clock(refused.atMs)} by the clock of that node`],
        ["How often", `${number(refused.count, 0)} told one by one`],
      ),
      Object.hasOwn(CAUSES, refused.cause) ? section("What to do", make("p", null, CAUSES[refused.cause])) : null,
    ].filter(Boolean);
  }
  function way(hop) {
    const { caller, callee } = hop;
    const step = (kind, title, ...lines) => make("li", { class: kind }, make("div", { class: "strong" }, title), ...lines.filter(Boolean).map((line) => make("div", { class: "soft" }, line)));
    const steps = [];
    const name = callerName(hop);
    const asked = caller && caller.asAgent ? foreign(name) : make("span", null, "a program on ", foreign(hop.from || "?"));
    steps.push(step(caller ? "" : "unknown", caller ? asked : foreign(name), caller ? "asks its own sidecar, plain HTTP on loopback" : null));
    const tries = caller && caller.tries && caller.tries.length ? caller.tries : null;
    if (caller) {
      const list = tries && (tries.length > 1 || tries[0].error) ? make("div", { class: "tries" }, ...tries.map((each, i) => make("div", null, `${i + 1}. `, foreign(each.node), each.error ? make("span", { class: "text-bad" }, ": ", foreign(each.error)) : ": answered"))) : null;
      const failed = caller.failed && !callee;
      steps.push(step(failed || !hop.to ? "bad" : "mutual", make("span", null, "mesh-proxy on ", foreign(hop.from)),
        [caller.attempts > 1 ? `${caller.attempts} attempts` : null, caller.connectMs !== undefined ? `${span(caller.connectMs)} for a new connection` : "on a connection that was open already"].filter(Boolean).join(", "),
        list, caller.failed ? make("span", { class: "text-bad" }, foreign(`${fault(caller)}: ${why(caller)}`)) : null));
    } else {
      steps.push(step("unknown", make("span", null, "the sidecar of ", foreign(hop.from)), "does not show this node what it carries"));
    }
    if (!hop.to) return make("ol", { class: "way" }, ...steps);
    if (callee) {
      steps.push(step(callee.failed && callee.code ? "bad" : "", make("span", null, "mesh-proxy on ", foreign(hop.to)), make("span", null, "verified the peer as ", foreign(callee.peer || "?"), ", over mutual TLS"),
        callee.failed ? make("span", { class: "text-bad" }, foreign(`${fault(callee)}: ${why(callee)}`)) : null));
    } else {
      steps.push(step("unknown", make("span", null, "the sidecar of ", foreign(hop.to)), "has not told of it: it does not show this node what it carries, or was not reached"));
    }
    const last = callee || caller;
    const reached = !(last.failed && last.code) || /^backend|^agent_busy/.test(last.code || "");
    const agent = agentName(hop);
    steps.push(step(reached ? (last.failed ? "bad" : "") : "unknown", agent ? make("span", null, foreign(agent), " on ", foreign(hop.to)) : make("span", null, "the agent's server on ", foreign(hop.to)),
      !reached ? "was not asked" : last.durationMs === undefined ? (last.status ? `answers ${last.status}, still streaming` : "has not answered yet")
        : last.status ? `answered ${last.status}${last.firstByteMs !== undefined ? ` after ${span(last.firstByteMs)}` : ""}, complete after ${span(last.durationMs)}` : "gave no answer"));
    return make("ol", { class: "way" }, ...steps);
  }
  // Each by its own host's clock, as they are: what a clock is off shows as a shift.
  function bars(rows) {
    const end = (row) => row.beganMs + (row.durationMs !== undefined ? row.durationMs : row.ageMs);
    const from = Math.min(...rows.map((row) => row.beganMs));
    const length = Math.max(1, Math.max(...rows.map(end)) - from);
    const lanes = rows.map((row) => {
      const bar = make("i", { class: row.failed ? "bad" : "" });
      bar.style.left = `${((row.beganMs - from) / length) * 100}%`;
      bar.style.width = `${((end(row) - row.beganMs) / length) * 100}%`;
      const track = make("div", { class: "track" }, bar);
      if (row.firstByteMs !== undefined && !row.failed) {
        const waiting = make("i", { class: "waiting" });
        waiting.style.left = bar.style.left;
        waiting.style.width = `${(row.firstByteMs / length) * 100}%`;
        track.append(waiting);
      }
      const side = row.direction === "outbound" ? `${row.teller}, calling` : `${row.teller}, called`;
      return make("div", { class: "lane" }, make("div", { class: "what" }, foreign(side), make("span", { class: "soft num" }, row.firstByteMs !== undefined ? `first byte ${span(row.firstByteMs)}, all ${span(end(row) - row.beganMs)}` : span(end(row) - row.beganMs))), track);
    });
    return make("div", { class: "bars" }, ...lanes, rows.length > 1 ? soft("Each by the clock of its own host.") : null);
  }

  const edgesOf = (name) => (state.live ? state.live.edges : []).filter((edge) => edge.from === name || edge.to === name);
  function nodeDetails(name, node, series) {
    const parts = [];
    if (!node) {
      parts.push(make("p", null, "It takes part in requests, and is not in the registry: a device, or a node that has been forgotten."));
    } else {
      const [days, kind] = ends(node);
      parts.push(facts(
        ["State", make("span", null, badge(node.status, statusKind(node.status)), node.lastSeenMs ? soft(` last seen ${new Date(node.lastSeenMs).toISOString().slice(0, 16).replace("T", " ")} UTC`) : "")],
        ["Agents", node.agents.length ? foreign(node.agents.join(", ")) : "none"],
        ["Address", foreign(`${node.host}${node.port ? ` port ${node.port}` : ""}`)],
        ["Certificate", node.certificateEnds ? make("span", { class: kind }, `ends in ${days}, on ${new Date(node.certificateEnds * 1000).toISOString().slice(0, 10)}`) : "not seen yet: nothing has been sent there"],
        node.models.length ? ["Models", foreign(node.models.join(", "))] : null,
        node.capabilities.length ? ["Capabilities", foreign(node.capabilities.join(", "))] : null,
        ["Version", foreign(node.version || "unknown")],
      ));
      const feed = node.feed;
      if (feed && feed.state === "notPermitted") {
        parts.push(section("Live view", make("p", null, "This node may not see what ", foreign(name), " carries. To change that, add this to ", foreign(name), "'s configuration and reload its mesh-proxy:"),
          make("pre", { class: "mono" }, `proxy:\n  live: {peers: [${state.mesh.node}]}`)));
      } else if (feed && feed.state === "waiting") {
        parts.push(section("Live view", make("p", null, "As many live views are read as can be at once. Of this node's traffic, what passes the others is shown.")));
      } else if (feed && feed.state === "away") {
        parts.push(section("Live view", make("p", null, foreign(feed.detail))));
      }
    }
    if (series && series.points.length) {
      const own = { ...series, points: new Map(series.points.map((each) => [each.step, each])), step: Math.max(0, series.step - 1) };
      const place = make("div", { class: "chart" });
      chart(place, `Requests from and to ${name} a second, and those that failed`, [
        { kind: "accent", points: traffic(own, perSecond(series), 0) },
        { kind: "bad", bare: true, points: traffic(own, (each) => each.failures / (series.stepMs / 1000), 0) }], series.steps, own.step, { least: 1, unit: (top) => `${number(top, 1)}/s` });
      parts.push(section("Requests from and to it", place));
    }
    const edges = edgesOf(name).sort((a, b) => b.rate - a.rate);
    if (edges.length) {
      parts.push(section("Traffic now", make("div", { class: "links" }, ...edges.slice(0, 30).map((edge) => {
        const other = edge.from === name ? edge.to : edge.from;
        return make("button", { type: "button", "data-go": `${edge.from} ${edge.to}`, on: { click: (event) => openNode(other, event.currentTarget) } },
          make("span", null, edge.from === name ? "to " : "from ", strong(foreign(other))),
          make("span", { class: edge.failures ? "num text-bad" : "num soft" }, `${rate(edge.rate)}/s${edge.failures ? `, ${rate(edge.failures)}/s failing` : ""}${edge.inFlight ? `, ${edge.inFlight} in flight` : ""}`));
      }))));
    }
    const mine = hops([...state.rows.values()].sort((a, b) => a.beganMs - b.beganMs)).filter((hop) => hop.from === name || hop.to === name).reverse().slice(0, 8);
    if (mine.length) {
      parts.push(section("Latest requests", make("div", { class: "links" }, ...mine.map((hop) =>
        make("button", { type: "button", "data-go": hop.key, on: { click: (event) => openRequest(hop, event.currentTarget) } }, make("span", null, between(hop)), statusBadge(hop))))));
    }
    return parts;
  }
  function agentDetails(agent) {
    if (!agent) return [make("p", null, "No node hosts it any more.")];
    return [section("Hosted by", make("div", { class: "links" }, ...agent.nodes.map((place) =>
      make("button", { type: "button", "data-go": place.node, on: { click: (event) => openNode(place.node, event.currentTarget) } },
        strong(foreign(place.node)), badge(place.status, statusKind(place.status))))))];
  }

  // ---- Keyboard and filter

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("filter").focus();
      $("filter").select();
    } else if (event.key === "Escape") {
      if (document.activeElement === $("filter") && $("filter").value) {
        $("filter").value = "";
        filter();
      } else if (!$("details").hidden) {
        close();
      } else {
        document.activeElement.blur();
      }
    }
  });
  function filter() {
    state.filter = $("filter").value.trim().toLowerCase();
    state.filterChanged = true;
    render();
  }
  $("filter").addEventListener("input", filter);

  // ---- Drawing, at most once for what came together

  let wanted = false;
  function render() {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(() => {
      wanted = false;
      showBanners();
      showTiles();
      showMap();
      showFlight();
      showRequests();
      showFailures();
      showNodes();
      showAgents();
      showChanges();
      showChosen();
      state.filterChanged = false;
    });
  }
  new ResizeObserver(render).observe($("map"));
  document.addEventListener("visibilitychange", () => { wake(); render(); });
  dark.addEventListener("change", () => { map.colours = null; render(); });
  reduced.addEventListener("change", render);

  // ---- The stream

  function connection(now) {
    if (state.connection === now) return;
    state.connection = now;
    const words = { connecting: "Connecting", live: "Live", lost: "Reconnecting", ended: "Not let in", full: "Too many windows" };
    $("connection").dataset.state = now === "live" || now === "connecting" ? now : "lost";
    set($("connection-text"), words[now]);
    render();
  }
  function keepNewest(map, rows) {
    for (const row of [...rows].reverse()) map.set(row.key, row);
    const order = [...map.values()];
    for (const row of order.slice(0, Math.max(0, order.length - MAX_KEPT))) map.delete(row.key);
  }
  const handlers = {
    mesh(data) {
      state.mesh = data;
      set($("own"), data.node || "this node");
      document.title = data.node ? `${data.node} · Mesh` : "Mesh";
      set($("versions"), `meshctl ${data.version}.`);
    },
    series(data) {
      state.series = { ...data, points: new Map(data.points.map((each) => [each.step, each])) };
      // What was known before a loss comes anew.
      state.rows.clear();
      state.failed.clear();
      state.refused.clear();
    },
    requests(data) {
      keepNewest(state.rows, data.requests);
      keepNewest(state.failed, data.failures);
    },
    refused(data) {
      for (const each of data) {
        state.refused.delete(each.key);
        state.refused.set(each.key, each);
      }
      for (const key of [...state.refused.keys()].slice(0, -MAX_REFUSED)) state.refused.delete(key);
    },
    changes(data) {
      const known = new Set(state.changes.map((change) => change.serial));
      state.changes = [...state.changes, ...data.filter((change) => !known.has(change.serial))].slice(-100);
    },
    live(data) {
      state.live = data;
      state.epochSkew = data.atMs - Date.now();
      state.series.step = data.step;
      if (data.point) state.series.points.set(data.point.step, data.point);
      for (const step of state.series.points.keys()) if (step <= data.step - state.series.steps) state.series.points.delete(step);
    },
  };
  let source = null;
  let pause = 1000;
  function follow() {
    source = new EventSource("events");
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        handle(JSON.parse(event.data));
        state.lastNews = performance.now();
        pause = 1000;
        connection("live");
        render();
        if (name === "live" && !$("details").hidden) refreshDetails();
      });
    }
    source.onerror = () => lose();
  }
  async function lose() {
    if (!source) return;
    source.close();
    source = null;
    connection("lost");
    // Whether the server is gone, or does not let this page in any more.
    try {
      const answer = await fetch("events", { method: "HEAD", cache: "no-store", credentials: "same-origin" });
      if (answer.status === 403) connection("ended");
      else if (answer.status === 503) connection("full");
    } catch {
      connection("lost");
    }
    setTimeout(follow, pause);
    pause = Math.min(pause * 1.6, 8000);
  }
  // News comes each second; a stream that brings none is broken, as after a sleep of the machine.
  setInterval(() => {
    if (source && state.connection === "live" && performance.now() - state.lastNews > FRESH_MS) lose();
  }, 1000);

  connection("connecting");
  follow();
})();
