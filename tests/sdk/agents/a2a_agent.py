"""An A2A agent on the Python SDK. Its card has to name an address that is right for every caller, so that there is an
application, with a card of its own, for each way of naming it: WAYS has their addresses."""

import asyncio
import json
import os

import uvicorn
from a2a.helpers import new_task_from_user_message, new_text_artifact_update_event, new_text_status_update_event
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, TaskState
from starlette.applications import Starlette
from starlette.routing import Mount


class Grok(AgentExecutor):
    async def execute(self, context, event_queue):
        task = context.current_task or new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        for word in ("hello ", "from ", "grok"):
            await event_queue.enqueue_event(new_text_artifact_update_event(task.id, task.context_id, name="answer", text=word))
            await asyncio.sleep(0.2)
        done = new_text_status_update_event(task.id, task.context_id, TaskState.TASK_STATE_COMPLETED, "done")
        await event_queue.enqueue_event(done)

    async def cancel(self, context, event_queue):
        pass


def application(url):
    card = AgentCard(
        name="grok", description="", version="1", default_input_modes=["text/plain"], default_output_modes=["text/plain"],
        capabilities=AgentCapabilities(streaming=True),
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")])
    handler = DefaultRequestHandler(agent_executor=Grok(), task_store=InMemoryTaskStore(), agent_card=card)
    return Starlette(routes=create_agent_card_routes(card) + create_jsonrpc_routes(handler, "/rpc"))


mounts = [Mount(f"/{name}", application(f"{url}/{name}/rpc")) for name, url in json.loads(os.environ["WAYS"]).items()]
uvicorn.run(Starlette(routes=mounts), port=int(os.environ["PORT"]), log_level="warning")
