#!/usr/bin/env python3
"""The network between the namespaces of a test: a TUN device in each, and this process between them, which passes packets on,
late, or not at all. Works on kernels without netem, and gives TCP real loss, delay and reordering.

Arguments: PREFIX NUMBER... makes the namespaces PREFIX-NUMBER with the addresses 10.77.0.NUMBER. Each line on stdin is a JSON
object with the rules from now on: "cut", a list of [from, to]; "loss", the share of packets that is dropped; "delayMs", each
way; "jitterMs", by how much it varies. It is answered by one with the packets so far. The namespaces are gone with this
process, which ends with its stdin."""
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# What is under way at once; more is dropped, as by any router.
QUEUE = 20000


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def plug(prefix, number):
    """A namespace with one device; returns what its packets come out of."""
    name, device = f"{prefix}-{number}", f"mt{os.getpid() % 100000}-{number}"
    ip("netns", "add", name)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", device, "netns", name, "name", "mesh0")
    ip("-n", name, "link", "set", "lo", "up")
    ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "mesh0")
    ip("-n", name, "link", "set", "mesh0", "up", "txqueuelen", "5000")
    return tun


class Wire:
    def __init__(self, prefix, numbers):
        self.tuns = {number: plug(prefix, number) for number in numbers}
        self.numbers = {tun: number for number, tun in self.tuns.items()}
        self.late, self.order = [], 0
        self.passed = self.dropped = 0
        self.obey({})

    def obey(self, rules):
        self.cut = {tuple(pair) for pair in rules.get("cut", [])}
        self.loss = rules.get("loss", 0)
        self.delay, self.jitter = rules.get("delayMs", 0) / 1000, rules.get("jitterMs", 0) / 1000

    def take(self, tun):
        for _ in range(64):
            try:
                packet = os.read(tun, 65536)
            except OSError:
                return
            if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16:19] != b"\x0a\x4d\x00":
                continue
            source, to = self.numbers[tun], packet[19]
            lost = self.loss and random.random() < self.loss
            if to not in self.tuns or (source, to) in self.cut or lost or len(self.late) >= QUEUE:
                self.dropped += 1
            elif self.delay:
                due = time.monotonic() + self.delay + random.uniform(-self.jitter, self.jitter)
                self.order += 1
                heapq.heappush(self.late, (due, self.order, to, packet))
            else:
                self.give(to, packet)

    def give(self, to, packet):
        try:
            os.write(self.tuns[to], packet)
            self.passed += 1
        except OSError:
            self.dropped += 1

    def run(self):
        poll = select.epoll()
        for tun in self.numbers:
            poll.register(tun, select.EPOLLIN)
        poll.register(0, select.EPOLLIN)
        print("ready", flush=True)
        while True:
            wait = max(0, self.late[0][0] - time.monotonic()) if self.late else -1
            for ready, _ in poll.poll(wait):
                if ready:
                    self.take(ready)
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                self.obey(json.loads(line))
                print(json.dumps({"passed": self.passed, "dropped": self.dropped}), flush=True)
            while self.late and self.late[0][0] <= time.monotonic():
                self.give(*heapq.heappop(self.late)[2:])


if __name__ == "__main__":
    prefix, numbers = sys.argv[1], [int(number) for number in sys.argv[2:]]
    try:
        Wire(prefix, numbers).run()
    finally:
        for number in numbers:
            subprocess.run(["ip", "netns", "del", f"{prefix}-{number}"], stderr=subprocess.DEVNULL)
