"""The load: tasks by name of a node and of an agent from every node, and long streams; and what became of each."""
import asyncio
import ctypes
import json
import os
import socket
import time
from dataclasses import dataclass, field

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)

# Longer than any of the sidecar's own limits: what takes longer was forgotten by it.
LIMIT = 40
# Silence of a stream that sends every 0.2 s.
SILENCE = 30


@dataclass(slots=True)
class Call:
    """One task or stream."""
    number: int
    kind: str  # node, agent or stream
    caller: str
    target: str  # a node or an agent
    began: float
    ended: float | None = None
    ok: bool = False
    retryable: bool = False
    detail: str = ""
    served_by: str = ""

    def __str__(self):
        told = ", told that repeating is safe" if self.retryable else ""
        return f"{self.kind} call {self.number} {self.caller} to {self.target} after {self.ended - self.began:.1f} s: {self.detail}{told}"


class Away(Exception):
    """No answer, or half of one."""


@dataclass
class Caller:
    """Programs on one node: one connection that is kept, for calls by node; a new one for each call by agent."""
    name: str
    namespace: str
    idle: list = field(default_factory=list)

    async def connect(self):
        # A socket belongs to the namespace in which its thread is at that moment.
        own, theirs = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            if libc.setns(theirs, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            made = socket.socket()
        finally:
            libc.setns(own, CLONE_NEWNET)
            os.close(own)
            os.close(theirs)
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", 3001))
        except BaseException:
            made.close()
            raise
        return await asyncio.open_connection(sock=made)

    async def request(self, call):
        body = json.dumps({"fromAgent": "load", "message": call.number}).encode()
        path = f"/{call.kind}s/{call.target}/api/message"
        head = (f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:3001\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n").encode()
        keep = call.kind == "node"
        self.idle = [(reader, writer) for reader, writer in self.idle if not reader.at_eof()]
        reader, writer = self.idle.pop() if keep and self.idle else await self.connect()
        try:
            writer.write(head + body)
            status, headers = await answer_head(reader)
            content = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.transport.abort()
            raise
        if keep and headers.get("connection") != "close":
            self.idle.append((reader, writer))
        else:
            writer.close()
        return status, headers, content

    async def stream(self, call):
        reader, writer = await self.connect()
        try:
            writer.write(f"GET /nodes/{call.target}/stream HTTP/1.1\r\nhost: 127.0.0.1:3001\r\n\r\n".encode())
            status, headers = await answer_head(reader)
            if status != 200:
                call.retryable = headers.get("x-mesh-retryable") == "true"
                raise Away(f"status {status} {headers.get('x-mesh-error')}")
            expected, rest = 0, b""
            while True:
                size = int(await asyncio.wait_for(reader.readline(), SILENCE), 16)
                rest += (await reader.readexactly(size + 2))[:-2]
                *events, rest = rest.split(b"\n\n")
                for event in events:
                    if event == b"data: end":
                        return
                    if event != b"data: %d" % expected:
                        raise Away(f"event {expected} expected, not {event}")
                    expected += 1
                if not size:
                    raise Away(f"ended after event {expected}")
        finally:
            writer.transport.abort()


async def answer_head(reader):
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    return int(status.split()[1]), headers


class Load:
    """Calls at a steady rate, whatever becomes of them, until it is paused."""

    def __init__(self, hosts, agents, rate, streams):
        self.callers = {host.name: Caller(host.name, host.namespace) for host in hosts}
        self.agents, self.rate, self.streams = agents, rate, streams
        self.calls, self.open, self.tasks = [], set(), []

    def start(self):
        names = list(self.callers)
        self.tasks = [asyncio.create_task(self.unary(names))]
        for number in range(self.streams):
            caller = names[number % len(names)]
            # Each way once before any comes twice.
            called = names[(number + 1 + number // len(names)) % len(names)]
            self.tasks.append(asyncio.create_task(self.stream(caller, called, number)))

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        pending = [task for task in self.open if not task.done()]
        if pending:
            await asyncio.wait(pending, timeout=LIMIT)

    def call(self, kind, caller, target):
        call = Call(len(self.calls) + 1, kind, caller, target, time.monotonic())
        self.calls.append(call)
        return call

    async def unary(self, names):
        due = time.monotonic()
        turn = 0
        while True:
            for caller in names:
                others = [name for name in names if name != caller]
                foreign = [agent for agent, hosts in self.agents.items() if caller not in hosts]
                kind = "node" if (turn + names.index(caller)) % 2 else "agent"
                targets = others if kind == "node" else foreign
                task = asyncio.create_task(self.one(self.call(kind, caller, targets[turn // 2 % len(targets)])))
                self.open.add(task)
                task.add_done_callback(self.open.discard)
                due += 1 / self.rate
                await asyncio.sleep(max(0, due - time.monotonic()))
            turn += 1

    async def one(self, call):
        try:
            status, headers, content = await asyncio.wait_for(self.callers[call.caller].request(call), LIMIT)
            call.served_by = headers.get("x-mesh-served-by", "")
            if status == 200:
                answer = json.loads(content)
                call.ok = answer["response"] == call.number
                call.served_by = answer["agent"]
                call.detail = "" if call.ok else f"the answer to another task: {content[:200]}"
            else:
                call.retryable = headers.get("x-mesh-retryable") == "true"
                call.detail = f"{status} {content[:300].decode(errors='replace')}"
        except (OSError, asyncio.IncompleteReadError, TimeoutError, KeyError, ValueError) as error:
            call.detail = "no answer at all" if isinstance(error, TimeoutError) else repr(error)
        finally:
            call.ended = time.monotonic()

    async def stream(self, caller, called, number):
        # Not all of them begin and end together.
        await asyncio.sleep(number * 0.9)
        while True:
            call = self.call("stream", caller, called)
            try:
                await self.callers[caller].stream(call)
                call.ok = True
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, Away) as error:
                call.detail = str(error) if isinstance(error, Away) else repr(error)
            # Not at the end of it all, when this is cancelled.
            call.ended = time.monotonic()
            await asyncio.sleep(0.5)
