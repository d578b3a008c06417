"""What the Python drivers share. A driver defines checks, functions of a way that raise if a user would notice
something, and calls `main`. Each pair of a check and a way runs in a process of its own, several at the same time."""

import json
import os
import signal
import sys
import time
import traceback

SECONDS = 15
AT_ONCE = int(os.environ.get("SDK_AT_ONCE", 12))
CHECKS = {}


def check(function):
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


class AllAtOnce(AssertionError):
    """A stream's pieces came together: somebody held them back, or this process was too slow to see them come."""


def spread(arrivals):
    """Fails if what was sent 0.2 s apart came all at once."""
    expect(len(arrivals) > 1, f"{len(arrivals)} pieces came")
    if arrivals[-1] - arrivals[0] < 0.1:
        raise AllAtOnce(f"pieces 0.2 s apart came within {arrivals[-1] - arrivals[0]:.2f} s, three times")


def elsewhere(way):
    """The same way to an agent, or a node, that does not exist: nobody."""
    return json.loads(json.dumps(way).replace("grok", "nobody").replace("ct111", "nobody"))


def shows(error):
    """Fails unless an SDK's error says, in what it prints, what the sidecar's does: that nobody is not known."""
    expect("no node" in str(error) and "nobody" in str(error), f"the error shows only {type(error).__name__}: {error}")


def explain(error):
    """An error as one line, with what it was raised from and what a group of them holds."""
    parts = []
    while error is not None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = " ".join(str(error).split())
        parts.append(f"{type(error).__name__}: {text}" if text else type(error).__name__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    first, last = parts[0], parts[-1]
    return (first if first == last else f"{first[:300]} / from {last}")[:600]


def run(job):
    """In the child: runs one check one way, and exits."""
    error = None
    try:
        for attempt in range(3):
            try:
                CHECKS[job["check"]](job["way"])
                break
            except AllAtOnce:
                # An SDK that loads half of itself with the first piece has it loaded the second time.
                if attempt == 2:
                    raise
    except BaseException as raised:  # noqa: BLE001 - whatever it is, the cell failed with it
        if os.environ.get("SDK_TRACE"):
            traceback.print_exc()
        error = explain(raised) or "failed"
    return {"check": job["check"], "way": job["way"]["name"], "error": error}


def warm_up(job):
    """Runs all checks once, for what they load: the children then have it loaded."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for function in CHECKS.values():
        signal.alarm(5)
        try:
            function(job["way"])
        except (Exception, KeyboardInterrupt):  # noqa: BLE001 - it runs once more, and counts then
            pass
        signal.alarm(0)


def main(warm=True):
    """Reads jobs, a JSON list of {check, way}, from stdin, and prints a JSON line for each."""
    jobs, children = json.load(sys.stdin), {}
    if warm:
        warm_up(jobs[0])
    while jobs or children:
        while jobs and len(children) < AT_ONCE:
            job = jobs.pop()
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                os.write(writer, json.dumps(run(job)).encode())
                os._exit(0)
            os.close(writer)
            children[pid] = (job, reader, time.monotonic() + SECONDS)
        for pid, (job, reader, deadline) in list(children.items()):
            late = time.monotonic() > deadline
            if late:
                os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, 0 if late else os.WNOHANG)[0]:
                del children[pid]
                report(job, reader, f"nothing within {SECONDS} s" if late else "its process crashed")
        time.sleep(0.01)


def report(job, reader, otherwise):
    result = os.read(reader, 1 << 16)
    os.close(reader)
    result = json.loads(result or json.dumps({"check": job["check"], "way": job["way"]["name"], "error": otherwise}))
    print(json.dumps(result), flush=True)


def http_checks(connect):
    """The checks of an HTTP client. `connect(way)` gives `ask(method, path, body)`, which follows redirects and
    gives the status and an iterator over the pieces of the body as they come."""

    def whole(answer):
        status, pieces = answer
        return status, b"".join(pieces)

    def posts(ask, way):
        body = b"x" * 70_000
        status, text = whole(ask("POST", "/echo?q=1", body))
        expect(status == 200, f"POST /echo: {status} {text[:300]}")
        seen = json.loads(text)
        got = (seen["method"], seen["path"], seen["bytes"], seen.get("peer"))
        expect(got == ("POST", "/echo?q=1", len(body), None if way["name"] == "direct" else "ct110"), f"the agent saw {got}")

    @check
    def post(way):
        posts(connect(way), way)

    @check
    def redirect(way):
        status, text = whole(connect(way)("GET", "/redirect"))
        expect((status, text) == (200, b"landed"), f"GET /redirect, followed: {status} {text[:300]}")

    @check
    def stream(way):
        status, pieces = connect(way)("GET", "/events")
        if status != 200:
            raise AssertionError(f"GET /events: {status} {b''.join(pieces)[:300]}")
        arrivals, text = [], b""
        for piece in pieces:
            arrivals.append(time.monotonic())
            text += piece
        expect(text.count(b"data:") == 3, f"three events were sent, got {text}")
        spread(arrivals)

    @check
    def too_large(way):
        ask = connect(way)
        status, text = whole(ask("POST", "/echo", b"x" * 12_000_000))
        expect(status == 413 and b"body_too_large" in text, f"an upload over the limit: {status} {text[:300]}")
        posts(ask, way)
