# With langgraph: a graph that an Agent Server on another node serves, used as if it were a local one.
from langgraph.pregel.remote import RemoteGraph

graph = RemoteGraph("agent", url="http://127.0.0.1:3001/agents/grok")
state = graph.invoke({"messages": [{"role": "user", "content": "hello"}]})
print(state["messages"][-1]["content"])
