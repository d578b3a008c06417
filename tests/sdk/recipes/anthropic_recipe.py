# With anthropic for Python. Its `base_url` does not end in `/v1`.
from anthropic import Anthropic

client = Anthropic(base_url="http://127.0.0.1:3001/agents/grok", api_key="unused")
answer = client.messages.create(model="grok", max_tokens=100, messages=[{"role": "user", "content": "hello"}])
print(answer.content[0].text)
