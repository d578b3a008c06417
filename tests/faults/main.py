#!/usr/bin/env python3
"""Six nodes in network namespaces under steady load, and one fault after the other. Prints a table in Markdown of what became of
the requests; ends with 1 if one was wrongly repeated, if a caller was told what is not so, if anything failed that the fault does
not touch, or if a recovery took longer than its bound. deploy/docs/faults.md describes it.

Arguments: parts of the names of faults to run, all by default; --short for those that take a minute together; --keep to keep the
folder with the logs. MESH_BIN: the folder of the programs (target/debug)."""
import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import hosts as fleet
from hosts import AGENTS, BIN, ETCD, NODES, PREFIX, Ca, Etcd, Host, Program, Share, Wire, meshctl, run
from leaf import age
from load import Load
from verdict import Fault, judge, ways

# Requests a second in all; long streams at once.
RATE, STREAMS = 40, 12
# Without a failure for so long, a fault is over.
QUIET = 2
# After its chain has changed, the CA renews nothing for two minutes.
SPREAD = 125
# A silent peer is asked for a sign of life after 4 s and given up 5 s later; a connection may take 10 s.
SILENT = 12
# The longest pause between two attempts on a node that could not be reached for as long as the faults here last.
EJECTED = 20

# In all.
LONGEST = 600

began = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)


class Suite:
    def __init__(self, folder):
        self.folder = folder
        (folder / "logs").mkdir()
        self.wire = Wire([*range(1, len(NODES) + 1), *ETCD])
        self.share = Share(folder, BIN / "examples/share")
        self.hosts = [Host(number, folder, self.share.path) for number in range(1, len(NODES) + 1)]
        self.named = {host.name: host for host in self.hosts}
        self.ca = Ca(folder, self.hosts[0])
        self.etcd = [Etcd(number, folder) for number in ETCD]
        self.load = Load(self.hosts, AGENTS, RATE, STREAMS)
        self.faults, self.wrong, self.skipped = [], [], []
        self.chain_changed = 0

    @contextlib.asynccontextmanager
    async def fault(self, name, **bounds):
        """Around what is done; over when everything that it touches answers again."""
        fault = Fault(name, **bounds)
        fault.began = time.monotonic()
        self.faults.append(fault)
        say(name)
        yield fault
        if fault.healed is None:
            fault.healed = time.monotonic()
        while True:
            now = time.monotonic()
            recent = [call for call in self.load.calls[-4000:] if not call.ok and call.ended and call.ended > now - QUIET]
            waiting = [call for call in self.load.calls[-4000:]
                       if call.ended is None and call.kind != "stream" and call.began < now - 1]
            if not recent and not waiting and now - fault.healed >= QUIET:
                break
            if now > fault.healed + fault.recover + SILENT + QUIET:
                last = recent[-1] if recent else "calls without an answer"
                self.wrong.append(f"{name}: not over {now - fault.healed:.1f} s after its end: {last}")
                break
            await asyncio.sleep(0.1)
        failed = [call for call in self.load.calls if call.ended and call.ended > fault.began and not call.ok]
        say(f"  {len(failed)} failed" + (f", the last one {failed[-1]}" if failed else ""))

    async def until(self, what, holds, limit):
        asked = time.monotonic()
        while time.monotonic() - asked < limit:
            with contextlib.suppress(OSError, ValueError, KeyError, SystemExit):
                if await asyncio.to_thread(holds):
                    say(f"  {what} after {time.monotonic() - asked:.1f} s")
                    return True
            await asyncio.sleep(0.2)
        self.wrong.append(f"not within {limit} s: {what}")
        say(f"  {self.wrong[-1]}")
        return False

    def all_online(self):
        return all(sum(node["status"] == "online" for node in host.nodes().values()) == len(self.hosts) for host in self.hosts)

    async def set_up(self):
        self.ca.start()
        if not await self.until("the CA's process runs", self.ca.socket.exists, 20):
            raise SystemExit("the CA's process does not start")
        for host in self.hosts:
            await asyncio.to_thread(host.join, self.ca)
            host.start()
        if not await self.until("all nodes are known everywhere", self.all_online, 60):
            raise SystemExit("the mesh does not come up")
        self.load.start()
        await asyncio.sleep(3)

    def skip(self, what):
        self.skipped.append(what)
        print(f"##### NOT RUN: {what} #####", flush=True)

    def end(self):
        for program in Program.every:
            with contextlib.suppress(OSError):
                program.kill()
        # Sidecars of before an upgrade that still have streams.
        for line in run("ps", "-o", "pid=,comm=", "--ppid", os.getpid()).splitlines():
            pid, command = line.split(None, 1)
            if command.strip() == "mesh-proxy":
                os.kill(int(pid), signal.SIGKILL)
        self.share.unmount()
        for host in self.hosts:
            host.unmount()
        self.wire.close()


# ── Nothing, and what must not be noticed at all ───────────────────────────────────────────────────────────────

async def nothing(suite):
    async with suite.fault("nothing"):
        await asyncio.sleep(8)


async def renewals(suite):
    async with suite.fault("every certificate is renewed"):
        await renew_all(suite)


async def renew_all(suite):
    before = {}
    for host in suite.hosts:
        files = (host.own / "state/tls/current").resolve()
        uris = [f"URI:spiffe://mesh/agent/{agent}@{host.name}" for agent in host.agents()]
        names = ",".join([f"DNS:{host.name}.mesh", f"IP:{host.ip}", f"URI:spiffe://mesh/node/{host.name}", *uris])
        await asyncio.to_thread(age, files, suite.ca.folder, (host.name, names), 3600, 60)
        before[host.name] = files
    if not await suite.until("all are renewed", lambda: all(
            (host.own / "state/tls/current").resolve() != before[host.name] for host in suite.hosts), 55):
        raise SystemExit("nothing works without certificates")
    await asyncio.sleep(3)


def chain_is_everywhere(suite):
    wanted = sorted(suite.ca.chain().split())
    return all(sorted((host.own / "state/tls/ca-chain.pem").read_text().split()) == wanted for host in suite.hosts)


async def root(suite):
    async with suite.fault("the root is replaced"):
        await asyncio.to_thread(suite.ca.do, "renew-root", "--root-dir", suite.ca.root)
        await suite.until("all know the new root", lambda: chain_is_everywhere(suite), 30)
        await asyncio.sleep(3)


async def intermediate(suite):
    async with suite.fault("the intermediate is replaced"):
        await asyncio.to_thread(suite.ca.do, "renew-intermediate", "--root-dir", suite.ca.root)
        await suite.until("all know the new intermediate", lambda: chain_is_everywhere(suite), 30)
        suite.chain_changed = time.monotonic()
        await asyncio.sleep(3)


async def renewals_by_new(suite):
    left = suite.chain_changed + SPREAD - time.monotonic() if suite.chain_changed else 0
    async with suite.fault("every certificate is renewed by the new intermediate"):
        await asyncio.sleep(max(0, left))
        await renew_all(suite)


async def ca_killed(suite):
    async with suite.fault("the CA's process is killed and restarted"):
        suite.ca.kill()
        await asyncio.sleep(3)
        suite.ca.start()
        await suite.until("the CA's process runs", suite.ca.socket.exists, 20)


async def registryd_killed(suite):
    async with suite.fault("registryd is killed and restarted 3 s later"):
        suite.named["ct2"].registryd.kill()
        await asyncio.sleep(3)
        suite.named["ct2"].start_registryd()
        await asyncio.sleep(3)


async def registryd_away(suite):
    # Longer than the threshold: its node counts as offline, and says so to those who name it.
    async with suite.fault("registryd of ct2 is away for 10 s", shunned={"ct2"}, recover=3) as fault:
        suite.named["ct2"].registryd.kill()
        await asyncio.sleep(10)
        suite.named["ct2"].start_registryd()
        fault.healed = time.monotonic()


async def upgrades(suite):
    async with suite.fault("the sidecar of every node is upgraded in turn (SIGUSR2)"):
        for host in suite.hosts:
            await asyncio.to_thread(host.upgrade)
            await asyncio.sleep(1.5)


# ── Processes and hosts ────────────────────────────────────────────────────────────────────────────────────────

async def agent_killed(suite):
    host = suite.named["ct4"]
    async with suite.fault("an agent is killed and restarted 3 s later", broken=ways([host.name], NODES), round=1,
                           recover=3):
        host.agent.kill()
        await asyncio.sleep(3)
        host.start_agent()


async def proxy_killed(suite):
    host = suite.named["ct3"]
    async with suite.fault("a sidecar is killed and restarted 3 s later", down={host.name},
                           broken=ways([host.name], NODES), round=1, recover=10):
        host.proxy.kill()
        await asyncio.sleep(3)
        host.start_proxy()


async def host_killed(suite):
    host = suite.named["ct5"]
    async with suite.fault("everything on a host is killed and restarted 8 s later", down={host.name},
                           broken=ways([host.name], NODES), round=1, recover=EJECTED):
        host.kill()
        await asyncio.sleep(8)
        host.start()


# ── The network ────────────────────────────────────────────────────────────────────────────────────────────────

def numbers(*names):
    return [int(name[2:]) for name in names]


async def halves(suite):
    one, other = NODES[:3], NODES[3:]
    async with suite.fault("the network breaks in two halves for 15 s", broken=ways(one, other), round=SILENT,
                           recover=EJECTED) as fault:
        pairs = [(a, b) for a in numbers(*one) for b in numbers(*other)]
        suite.wire.rules(cut=pairs + [(b, a) for a, b in pairs])
        await asyncio.sleep(15)
        suite.wire.rules()
        fault.healed = time.monotonic()


async def one_way(suite):
    async with suite.fault("nothing that ct2 sends reaches ct5, for 15 s", broken=ways(["ct2"], ["ct5"]), round=SILENT,
                           recover=EJECTED) as fault:
        suite.wire.rules(cut=[(2, 5)])
        await asyncio.sleep(15)
        suite.wire.rules()
        fault.healed = time.monotonic()


async def deaf(suite):
    async with suite.fault("ct6 is heard and hears nothing, for 15 s", down={"ct6"}, broken=ways(["ct6"], NODES),
                           round=SILENT, recover=EJECTED) as fault:
        suite.wire.rules(cut=[(number, 6) for number in range(1, 6)])
        await asyncio.sleep(15)
        suite.wire.rules()
        fault.healed = time.monotonic()


async def loss(suite):
    async with suite.fault("2 % of all packets are lost and each takes 200 ms, for 20 s"):
        suite.wire.rules(loss=0.02, delayMs=200, jitterMs=20)
        await asyncio.sleep(20)
        suite.wire.rules()


async def flood(suite):
    flooder = Program("flood", suite.folder / "logs", f"{PREFIX}-{ETCD[0]}")
    async with suite.fault("the listener of ct1 is flooded for 12 s"):
        flooder.start(sys.executable, fleet.HERE / "flood.py", suite.named["ct1"].ip, "3000")
        await asyncio.sleep(12)
        flooder.kill()


# ── Storage and clocks ─────────────────────────────────────────────────────────────────────────────────────────

async def share_hangs(suite):
    async with suite.fault("the share hangs for 15 s"):
        suite.share.hang()
        await asyncio.sleep(15)
        suite.share.go_on()
        await asyncio.sleep(3)


async def disk_full(suite):
    host = suite.named["ct4"]
    async with suite.fault("the share and the disk of ct4 are full, for 12 s"):
        suite.share.fill()
        host.fill()
        await asyncio.sleep(12)
    async with suite.fault("with a full disk, the sidecar of ct4 is killed and restarted", down={host.name},
                           broken=ways([host.name], NODES), round=1, recover=10):
        host.proxy.kill()
        host.start_proxy()
    async with suite.fault("there is room again"):
        suite.share.empty()
        (host.own / "filler").unlink()
        await asyncio.sleep(4)


async def clocks(suite):
    if not shutil.which("faketime"):
        return suite.skip("skewed clocks: faketime is not installed")
    skewed = {"ct2": "+1h", "ct3": "-50m"}
    touched = {"down": set(skewed), "broken": ways(skewed, NODES), "round": 2, "recover": 10}

    async def restart(offsets):
        for name in skewed:
            host, env = suite.named[name], None
            if offset := offsets.get(name):
                library = run("faketime", "-f", offset, "printenv", "LD_PRELOAD").strip()
                env = {"LD_PRELOAD": library, "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                       "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
            for program in (host.proxy, host.registryd):
                await asyncio.to_thread(program.kill)
            host.start_registryd(env)
            host.start_proxy(env)

    async with suite.fault("ct2 and ct3 restart with clocks 1 h ahead and 50 min behind", **touched):
        await restart(skewed)
    async with suite.fault("the clocks stay wrong for 10 s"):
        await asyncio.sleep(10)
    async with suite.fault("ct2 and ct3 restart with right clocks", **touched):
        await restart({})


# ── Trust ──────────────────────────────────────────────────────────────────────────────────────────────────────

async def revocation(suite):
    host = suite.named["ct6"]
    async with suite.fault("ct6 is revoked for 10 s, then invited anew", down={host.name}, broken=ways([host.name], NODES),
                           round=6, recover=EJECTED) as fault:
        await asyncio.to_thread(suite.ca.do, "revoke", host.name, "--json")
        await asyncio.sleep(10)
        bound = fault.began + 4 * fleet.HEARTBEAT_MS / 1000
        for call in suite.load.calls:
            if call.kind == "node" and call.ok and call.began > bound and host.name in (call.caller, call.target):
                suite.wrong.append(f"{fault.name}: it was let in {call.began - fault.began:.1f} s later: {call}")
        host.kill()
        await asyncio.to_thread(host.join, suite.ca)
        host.start()


# ── etcd ───────────────────────────────────────────────────────────────────────────────────────────────────────

async def to_etcd(suite):
    if not shutil.which("etcd") or not shutil.which("etcdctl"):
        return suite.skip("everything about etcd: it is not installed")
    for member in suite.etcd:
        member.start()
    await suite.until("etcd has a leader", lambda: any([member.is_leader() for member in suite.etcd]), 20)
    async with suite.fault("the registry moves from the share to etcd"):
        config = suite.folder / "migrate.yaml"
        shutil.copy(suite.hosts[0].config, config)
        bridge = Program("migrate", suite.folder / "logs", suite.hosts[0].namespace)
        bridge.start(BIN / "meshctl", "store", "migrate", "--to", "etcd", "--config", config)
        await suite.until("the bridge stands", lambda: bridge.lines("0 of 6 nodes have moved"), 20)
        for host in suite.hosts:
            text = host.config.read_text()
            changed = text.replace('"kind":"file"', '"kind":"etcd"')
            if text == changed:
                raise SystemExit(f"no store to change in {host.config}")
            host.config.write_text(changed)
            await asyncio.to_thread(host.registryd.kill, signal.SIGTERM)
            host.start_registryd()
            await asyncio.sleep(1)
        await suite.until("all nodes have moved", lambda: bridge.lines("all 6 nodes have moved"), 30)
        await suite.until("all nodes are online", suite.all_online, 20)


def etcd_runs(suite):
    return suite.etcd[0].process.pid is not None


async def member_lost(suite):
    if not etcd_runs(suite):
        return
    leader = next(member for member in suite.etcd if member.is_leader())
    async with suite.fault("etcd's leader is killed and restarted 8 s later"):
        leader.process.kill()
        await asyncio.sleep(8)
        leader.start()
        await asyncio.sleep(2)


async def majority_lost(suite):
    if not etcd_runs(suite):
        return
    async with suite.fault("two of three members of etcd are away for 12 s"):
        for member in suite.etcd[:2]:
            member.process.kill()
        await asyncio.sleep(12)
        for member in suite.etcd[:2]:
            member.start()
        await suite.until("all nodes are online", suite.all_online, 30)


async def cut_off(suite):
    if not etcd_runs(suite):
        return
    async with suite.fault("ct4 is cut off from all nodes and from etcd for 15 s", down={"ct4"}, broken=ways(["ct4"], NODES),
                           round=SILENT, recover=EJECTED) as fault:
        others = [number for number in [*range(1, 7), *ETCD] if number != 4]
        suite.wire.rules(cut=[(4, other) for other in others] + [(other, 4) for other in others])
        await asyncio.sleep(15)
        suite.wire.rules()
        fault.healed = time.monotonic()
        await suite.until("all nodes are online", suite.all_online, 30)


FAULTS = [nothing, renewals, root, intermediate, registryd_killed, registryd_away, ca_killed, agent_killed, proxy_killed,
          host_killed, halves, one_way, deaf, loss, flood, share_hangs, disk_full, clocks, upgrades, renewals_by_new, revocation, to_etcd,
          member_lost, majority_lost, cut_off]
SHORT = [nothing, registryd_killed, agent_killed, proxy_killed, upgrades]


async def test(suite, chosen):
    await suite.set_up()
    for each in chosen:
        await each(suite)
    async with suite.fault("nothing, at the end"):
        await asyncio.sleep(3)
    await suite.load.stop()


def main():
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    chosen = SHORT if "--short" in sys.argv else FAULTS
    if arguments:
        chosen = [each for each in FAULTS if any(part in each.__name__ for part in arguments)]
    if os.geteuid():
        sys.exit("##### NOT RUN: network namespaces need root #####")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mesh-faults-"))
    suite = Suite(folder)
    try:
        asyncio.run(asyncio.wait_for(test(suite, chosen), LONGEST))
        table, wrong = judge(suite.faults, suite.load.calls, suite.hosts)
    finally:
        suite.end()
    print(f"\n{table}\n")
    wrong += suite.wrong
    for what in suite.skipped:
        print(f"##### NOT RUN: {what} #####")
    if wrong:
        print("\n".join(wrong[:60]) + (f"\n… and {len(wrong) - 60} more" if len(wrong) > 60 else ""))
        sys.exit(f"{len(wrong)} things are wrong; the logs are in {folder}/logs")
    print(f"all as it should be, in {time.monotonic() - began:.0f} s")
    if "--keep" in sys.argv:
        print(f"the logs are in {folder}/logs")
    else:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
