# With openai for Python. The URL decides which agent is asked; `model` does not.
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:3001/agents/grok/v1", api_key="unused")
answer = client.chat.completions.create(model="grok", messages=[{"role": "user", "content": "hello"}])
print(answer.choices[0].message.content)
