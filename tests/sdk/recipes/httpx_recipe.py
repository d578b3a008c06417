# With httpx: by base URL; by header; over the unix socket. (The first two work in the same way with requests, aiohttp and urllib3.)
import httpx

with httpx.Client(base_url="http://127.0.0.1:3001/agents/grok") as client:
    print(client.get("/v1/name").raise_for_status().text)

with httpx.Client(base_url="http://127.0.0.1:3001", headers={"x-mesh-agent": "grok"}) as client:
    print(client.get("/v1/name").raise_for_status().text)

with httpx.Client(base_url="http://localhost/agents/grok", transport=httpx.HTTPTransport(uds="/run/mesh-proxy/outbound.sock")) as client:
    print(client.get("/v1/name").raise_for_status().text)
