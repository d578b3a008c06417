"""An agent on Starlette: what the HTTP, OpenAI, Anthropic, Ollama, LangGraph and WebSocket clients talk to."""

import asyncio
import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

WORDS = ["hello ", "from ", "grok"]


async def echo(request: Request):
    return JSONResponse({
        "method": request.method,
        "path": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "bytes": len(await request.body()),
        "peer": request.headers.get("x-mesh-peer-cn"),
        "host": request.headers.get("host"),
    })


async def redirect(request: Request):
    # An absolute address, made of the Host that the agent saw, as most frameworks do.
    return RedirectResponse(str(request.url_for("landed")))


async def landed(_):
    return PlainTextResponse("landed")


async def name(_):
    return PlainTextResponse("grok\n")


def events(make):
    async def pieces():
        for word in WORDS:
            yield make(word)
            await asyncio.sleep(0.2)
    return pieces()


async def server_sent_events(_):
    return StreamingResponse(events(lambda word: f"data: {word}\n\n"), media_type="text/event-stream")


async def chat_completions(request: Request):
    asked = await request.json()
    common = {"id": "c1", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**common, "object": "chat.completion", "choices": [choice]})

    async def pieces():
        async for piece in events(lambda word: {"index": 0, "delta": {"content": word}, "finish_reason": None}):
            yield "data: " + json.dumps({**common, "object": "chat.completion.chunk", "choices": [piece]}) + "\n\n"
        yield "data: [DONE]\n\n"
    return StreamingResponse(pieces(), media_type="text/event-stream")


async def messages(request: Request):
    asked = await request.json()
    message = {"id": "m1", "type": "message", "role": "assistant", "model": asked["model"], "stop_sequence": None,
               "usage": {"input_tokens": 1, "output_tokens": 1}}
    if not asked.get("stream"):
        text = {"type": "text", "text": "".join(WORDS)}
        return JSONResponse({**message, "content": [text], "stop_reason": "end_turn"})

    def event(kind, **more):
        return f"event: {kind}\ndata: " + json.dumps({"type": kind, **more}) + "\n\n"

    async def pieces():
        yield event("message_start", message={**message, "content": [], "stop_reason": None})
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for piece in events(lambda word: event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})):
            yield piece
        yield event("content_block_stop", index=0)
        yield event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 3})
        yield event("message_stop")
    return StreamingResponse(pieces(), media_type="text/event-stream")


async def ollama_chat(request: Request):
    # Ollama refuses what is not addressed to this host, against DNS rebinding.
    if request.url.hostname not in ("127.0.0.1", "localhost"):
        return PlainTextResponse(status_code=403)
    asked = await request.json()

    def piece(word, done):
        message = {"role": "assistant", "content": word}
        return {"model": asked["model"], "created_at": "2026-01-01T00:00:00Z", "message": message, "done": done}

    # Unlike OpenAI's, this API streams unless told not to.
    if not asked.get("stream", True):
        return JSONResponse(piece("".join(WORDS), True))

    async def pieces():
        async for line in events(lambda word: json.dumps(piece(word, False)) + "\n"):
            yield line
        yield json.dumps(piece("", True)) + "\n"
    return StreamingResponse(pieces(), media_type="application/x-ndjson")


async def graph_run(request: Request):
    """A run of LangGraph's Agent Server that belongs to no thread: the graph's state after each step."""
    asked = await request.json()
    said = []

    def state(word):
        said.append(word)
        answer = {"type": "ai", "content": "".join(said)}
        return "event: values\ndata: " + json.dumps({"messages": [*asked["input"]["messages"], answer]}) + "\n\n"

    return StreamingResponse(events(state), media_type="text/event-stream")


async def socket(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(f"grok: {text}")


app = Starlette(routes=[
    Route("/echo", echo, methods=["GET", "POST"]),
    Route("/redirect", redirect),
    Route("/landed", landed, name="landed"),
    Route("/v1/name", name),
    Route("/events", server_sent_events),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/api/chat", ollama_chat, methods=["POST"]),
    Route("/runs/stream", graph_run, methods=["POST"]),
    WebSocketRoute("/socket", socket),
    # /folder redirects to /folder/ by itself.
    Mount("/folder", routes=[Route("/", landed)]),
])
