"""What each fault may touch and for how long, what became of the calls during it, and what of that is wrong."""
import time
from collections import Counter
from dataclasses import dataclass, field

from hosts import AGENTS

# Calls that end together with a fault's beginning or end belong to it.
SLACK = 0.5


def ways(nodes, others):
    """The ways between each node and each of the others, in both directions: a request needs both."""
    return {frozenset((one, other)) for one in nodes for other in others if one != other}


@dataclass
class Fault:
    """A fault, and its bounds in seconds."""
    name: str
    # Nodes that do not work themselves: whatever begins there may fail.
    down: set = field(default_factory=set)
    # Ways that do not work.
    broken: set = field(default_factory=set)
    # Nodes that nobody reaches by their names, while they themselves reach the others.
    shunned: set = field(default_factory=set)
    # For how long a call by an agent's name may meet a node that does not work.
    round: float = 0
    # How long after its end anything may fail.
    recover: float = 0
    began: float = 0
    healed: float | None = None
    calls: list = field(default_factory=list)

    def touches(self, call):
        """Whether the call may fail."""
        if call.began > (self.healed or call.began) + self.recover:
            return False
        if call.caller in self.down:
            return True
        if call.kind != "agent" and call.target in self.shunned:
            return True
        hosts = AGENTS[call.target] if call.kind == "agent" else [call.target]
        if not any(frozenset((call.caller, host)) in self.broken for host in hosts):
            return False
        return call.kind != "agent" or call.began <= self.began + self.round

    def row(self, done):
        """Its line in the table."""
        unary = [call for call in self.calls if call.kind != "stream"]
        failed = [call for call in unary if not call.ok]
        cut = [call for call in self.calls if call.kind == "stream" and not call.ok]
        healed = self.healed if self.healed is not None else self.began
        around = [call.ended - self.began for call in failed
                  if call.kind == "agent" and call.caller not in self.down and call.began < healed]
        after = [call.ended - healed for call in failed if call.ended > healed]
        repeated = sum(done[call.number] > 1 for call in unary)
        return [self.name, len(unary), len(failed), sum(call.retryable for call in failed), len(cut), repeated,
                len([call for call in unary if lost(call, done)]),
                f"{max(around):.1f}" if around else "-", f"{max(after, default=0):.1f}"]


HEADER = ["Fault", "Requests", "Failed", "of these retryable", "Streams cut or refused", "Wrongly repeated", "Lost",
          "Seconds until others went round", "Seconds to recover"]


def lost(call, done):
    """Whether the caller was told what is not so."""
    return call.ok and not done[call.number] or call.retryable and done[call.number] > 0


def wrong(fault, done):
    """Everything that may not be, in words."""
    said = []
    for call in fault.calls:
        if call.kind != "stream":
            if done[call.number] > 1:
                said.append(f"done {done[call.number]} times: {call}")
            if lost(call, done):
                said.append(f"{'done nevertheless' if call.retryable else 'not done'}: {call}")
        if not call.ok and not fault.touches(call):
            since = f"{call.began - fault.began:+.1f} s from its beginning"
            if fault.healed is not None:
                since += f", {call.began - fault.healed:+.1f} s from its end"
            said.append(f"failed although untouched ({since}): {call}")
    return [f"{fault.name}: {text}" for text in said]


def judge(faults, calls, hosts):
    """The table in Markdown, and what is wrong."""
    done = Counter(number for host in hosts for number in host.tasks())
    # Each call belongs to the fault during which it ended.
    for call in calls:
        ended = call.ended if call.ended is not None else time.monotonic()
        before = [fault for fault in faults if fault.began <= ended + SLACK]
        if call.ended is not None and before:
            before[-1].calls.append(call)
    rows = [HEADER, ["---"] + ["--:"] * (len(HEADER) - 1), *(fault.row(done) for fault in faults)]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    return table, [text for fault in faults for text in wrong(fault, done)]
