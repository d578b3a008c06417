# With langchain-openai, as the model of a LangChain agent or of a node in a LangGraph graph.
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="grok", base_url="http://127.0.0.1:3001/agents/grok/v1", api_key="unused")
print(model.invoke("hello").content)
