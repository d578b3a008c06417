# With openai for Python. Another `model` changes nothing: the URL says which agent is asked.
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:3001/agents/grok/v1", api_key="unused")
answer = client.chat.completions.create(model="grok", messages=[{"role": "user", "content": "hello"}])
print(answer.choices[0].message.content)
