"""An agent on FastAPI."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse

app = FastAPI()


@app.post("/echo")
async def echo(request: Request):
    return {"method": request.method, "path": f"{request.url.path}?{request.url.query}", "bytes": len(await request.body()),
            "peer": request.headers.get("x-mesh-peer-cn")}


@app.get("/redirect")
def redirect(request: Request):
    return RedirectResponse(request.url_for("landed"))


@app.get("/landed")
def landed():
    return PlainTextResponse("landed")


# FastAPI redirects /folder here.
@app.get("/folder/")
def folder():
    return PlainTextResponse("landed")


@app.get("/events")
async def events():
    async def pieces():
        for word in ("hello", "from", "grok"):
            yield f"data: {word}\n\n"
            await asyncio.sleep(0.2)
    return StreamingResponse(pieces(), media_type="text/event-stream")
