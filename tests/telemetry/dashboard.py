"""Sends every query of the Grafana dashboard to a real Prometheus, which scrapes real sidecars and their registryds under
traffic, refusals included, and has the alerts loaded: dashboard.py PROMETHEUS [--picture FILE]. The picture is for the
documents: panels of the dashboard, drawn from Prometheus' answers."""

import contextlib
import http.client
import http.server
import itertools
import json
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import picture

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "tests/sdk"))
import mesh  # noqa: E402

RULES = REPOSITORY / "deploy/prometheus/mesh.rules.yaml"
SCRAPE_S = 1
# Grafana's rate interval is four scrapes.
RATE_INTERVAL_S = 4 * SCRAPE_S
# How long there is traffic before the queries are sent.
TRAFFIC_S, PICTURE_S = 15, 75
# Why a request was not sent again: nothing here makes that happen.
MAY_BE_EMPTY = {"mesh_proxy_retries_refused_total"}
IN_PICTURE = [
    "Requests per second, by node that is called", "Errors made by sidecars, by code", "In flight",
    "Time to the end of the answer", "Refused by limits", "Handshakes that failed, by reason",
]


class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        time.sleep(int(self.rfile.read(int(self.headers["content-length"]))) / 1000)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


class Watched(mesh.Mesh):
    """ct111 and ct112 host grok. What peers may do is little, so that some of it is refused."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sidecars, self.registries, self.inbound = {}, {}, {}

    def config(self, name, agents, proxy):
        config = super().config(name, agents, proxy)
        for told in (self.sidecars, self.registries):
            told[name] = f"127.0.0.1:{mesh.free_port()}"
        self.inbound[name] = config["mesh"]["agent_channel_port"]
        config["registryd"]["metrics"] = {"listen": self.registries[name]}
        rules = [{"path": "/admin/**", "action": "deny"}, {"action": "allow"}]
        more = {"admin": {"listen": self.sidecars[name]}, "limits": {"max_requests_per_peer": 6}, "policy": {"rules": rules}}
        mesh.merge(config["proxy"], more)
        return config


def call(nodes, path, wait_ms=0):
    body = str(wait_ms)
    connection = http.client.HTTPConnection("127.0.0.1", nodes.outbound, timeout=10)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status


def strangers(nodes):
    """Speaks anything but TLS."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", nodes.inbound["ct111"]), timeout=5) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.recv(100)


def traffic(nodes, ended):
    """Steady calls, some slow; now and then more at once than a peer may have, refused paths, unknown nodes, strangers."""
    def steadily(act, pause):
        def go():
            for turn in itertools.count():
                act(turn)
                if ended.wait(pause):
                    return
        threading.Thread(target=go, daemon=True).start()

    steadily(lambda turn: call(nodes, "/agents/grok/api/message", (7 * turn) % 90), 0.05)
    steadily(lambda turn: call(nodes, "/nodes/ct111/v1/chat/completions", 300 + (131 * turn) % 500), 0.1)
    steadily(lambda _: call(nodes, "/nodes/ct112/mcp", 20), 0.2)
    steadily(lambda turn: call(nodes, ("/nodes/ct111/admin/keys", "/nodes/ct119/mcp")[turn % 2]), 0.5)
    steadily(lambda _: strangers(nodes), 0.7)

    def burst(_):
        several = [threading.Thread(target=call, args=(nodes, "/nodes/ct111/v1/responses", 400)) for _ in range(10)]
        for each in several:
            each.start()
        for each in several:
            each.join()
    steadily(burst, 2)


class Prometheus:
    def __init__(self, program, folder, nodes):
        self.address = f"127.0.0.1:{mesh.free_port()}"
        jobs = {"mesh-proxy": nodes.sidecars, "registryd": nodes.registries}
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [*of.values()]}]} for job, of in jobs.items()],
        }
        Path(f"{folder}/prometheus.yaml").write_text(json.dumps(configuration))
        self.process = mesh.start([program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb",
                                   f"--web.listen-address={self.address}"], f"{folder}/prometheus.log")
        self.targets = sum(len(of) for of in jobs.values())

    def ask(self, path, **query):
        """What `path` below /api/v1 answers; an error of Prometheus is one here."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # It is still starting.
                raise
            raise SystemExit(f"{path} {query}: {error.read().decode()}") from None

    def scrapes_all(self):
        states = [target["health"] for target in self.ask("targets")["activeTargets"]]
        return states == ["up"] * self.targets


def queries(dashboard):
    """Each query as Grafana would send it: the panel, its target, and the query with the variables filled in."""
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            filled = target["expr"].replace("$instance", ".*").replace("$__rate_interval", f"{RATE_INTERVAL_S}s")
            assert "$" not in filled and "instance" in variables, f"{panel['title']}: this test fills in no more: {filled}"
            yield panel, target, filled


def check_rules(prometheus):
    """The alerts are loaded, and Prometheus has been able to evaluate each."""
    named = set(re.findall(r"- alert: (\w+)", RULES.read_text()))

    def evaluated():
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        for rule in rules:
            assert not rule.get("lastError"), rule
        return {rule["name"] for rule in rules if rule["health"] == "ok"} == named
    mesh.wait_for("each alert is evaluated", evaluated)
    return named


def check(prometheus, began):
    """Every query of every dashboard has an answer. Returns the panels' series of a time."""
    drawn, empty, asked = {}, [], 0
    for path in sorted((REPOSITORY / "deploy/grafana").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
                values = prometheus.ask(f"label/{label}/values", **{"match[]": metric})
                assert len(values) == 3, f"${variable['name']} has the values {values}"
        for panel, target, query in queries(dashboard):
            asked += 1
            if panel["type"] == "stat":
                series = prometheus.ask("query", query=query)["result"]
                values = [each["value"][1] for each in series]
            else:
                series = prometheus.ask("query_range", query=query, start=began, end=time.time(), step=SCRAPE_S)["result"]
                values = [value for each in series for _, value in each["values"]]
                drawn.setdefault(panel["title"], (panel, []))[1].extend((target, each) for each in series)
            if all(value == "NaN" for value in values) and not any(metric in query for metric in MAY_BE_EMPTY):
                empty.append(f"{panel['title']}: {query}")
    assert not empty, "no data for\n  " + "\n  ".join(empty)
    return asked, drawn


def main():
    file = sys.argv[3] if sys.argv[2:3] == ["--picture"] else None
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_end:
        nodes = Watched(folder, mesh.make_ca(folder), ("ct111", "ct112"))
        at_end.callback(nodes.end)
        backends = []
        for _ in nodes.hosts:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            backends.append({"address": f"127.0.0.1:{server.server_address[1]}"})
        nodes.start(backends)
        prometheus = Prometheus(sys.argv[1], folder, nodes)
        at_end.callback(mesh.end, [prometheus.process])
        mesh.wait_for("Prometheus scrapes all of them", prometheus.scrapes_all)
        ended = threading.Event()
        at_end.callback(ended.set)
        began = time.time()
        lasts = PICTURE_S if file else TRAFFIC_S
        traffic(nodes, ended)
        time.sleep(lasts / 2)
        # ct112's sidecar goes away: calls of grok are sent again to ct111, and ct112 is taken out of use.
        mesh.end([nodes.processes.pop()])
        time.sleep(lasts / 2)
        alerts = check_rules(prometheus)
        asked, drawn = check(prometheus, began)
        if file:
            Path(file).write_text(picture.draw([drawn[title] for title in IN_PICTURE], began, time.time()))
    print(f"Prometheus has data for the {asked} queries of the dashboard, and evaluates the {len(alerts)} alerts")


main()
