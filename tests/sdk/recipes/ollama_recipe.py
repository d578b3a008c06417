# With ollama for Python. `OLLAMA_HOST=http://127.0.0.1:3001/agents/grok` in the environment does the same.
from ollama import Client

client = Client(host="http://127.0.0.1:3001/agents/grok")
answer = client.chat(model="grok", messages=[{"role": "user", "content": "hello"}])
print(answer.message.content)
