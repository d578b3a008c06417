"""An agent on Flask: on its own server, and on gunicorn."""

import os
import time

from flask import Flask, redirect, request, url_for

app = Flask(__name__)


@app.post("/echo")
def echo():
    return {"method": request.method, "path": request.full_path, "bytes": len(request.get_data()),
            "peer": request.headers.get("x-mesh-peer-cn")}


@app.get("/redirect")
def absolute_redirect():
    return redirect(url_for("landed", _external=True))


@app.get("/landed")
def landed():
    return "landed"


# Flask redirects /folder here.
@app.get("/folder/")
def folder():
    return "landed"


@app.get("/events")
def events():
    def pieces():
        for word in ("hello", "from", "grok"):
            yield f"data: {word}\n\n"
            time.sleep(0.2)
    return app.response_class(pieces(), mimetype="text/event-stream")


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]), threaded=True)
