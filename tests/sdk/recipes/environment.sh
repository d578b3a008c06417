# Programs that read `http_proxy` need no change. Set `no_proxy` as well, so that requests to localhost do not go through the proxy.
export http_proxy=http://127.0.0.1:3001 no_proxy=localhost,127.0.0.1
python3 -c 'import urllib.request; print(urllib.request.urlopen("http://grok.agent.mesh/v1/name").read().decode())'
# Node.js (22.21 or newer, 24.5 or newer) reads it for fetch and node:http with:
NODE_USE_ENV_PROXY=1 node -e 'fetch("http://grok.agent.mesh/v1/name").then((answer) => answer.text()).then(console.log)'
