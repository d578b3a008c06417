# With curl: by base URL, by header, as a proxy, and over the unix socket.
curl -sSf http://127.0.0.1:3001/agents/grok/v1/chat/completions -H 'content-type: application/json' \
     -d '{"model": "grok", "messages": [{"role": "user", "content": "hello"}]}'
curl -sSf http://127.0.0.1:3001/v1/name -H 'x-mesh-agent: grok'
http_proxy=http://127.0.0.1:3001 curl -sSf http://grok.agent.mesh/v1/name
curl -sSf --unix-socket /run/mesh-proxy/outbound.sock http://localhost/agents/grok/v1/name
