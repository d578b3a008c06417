"""The sidecar pair of this repository, for the side-by-side bench of mTLS sidecars.

Two mesh-proxy processes with the defaults of a real installation (HTTP/2 between them, an access log line
for each request); registryd is not on the way of a request and does not run: A starts with a saved roster.
"""

import json
import os
import re
import subprocess

LEVEL = "http"

A = """
mesh: {{enabled: true, node_name: {ctx.a_cn}, agent_channel_port: {inbound},
  tls: {{ca_path: {ctx.a_ca}, cert_path: {ctx.a_cert}, key_path: {ctx.a_key}}}}}
proxy:
  inbound: {{address: 127.0.0.1}}
  outbound: {{listen: 127.0.0.1:{outbound}, listeners: [{{listen: "127.0.0.1:{ctx.a_port}", node: {ctx.b_cn}}}]}}
  limits: {{max_body_bytes: 1073741824}}
  state_dir: {ctx.dir}/a
registryd: {{socket: {ctx.dir}/a/registryd.sock}}
"""
B = """
mesh: {{enabled: true, node_name: {node}, agent_channel_port: {ctx.b_port},
  tls: {{ca_path: {bundle}, cert_path: {ctx.b_cert}, key_path: {ctx.b_key}}}}}
proxy:
  inbound: {{address: 127.0.0.1}}
  outbound: {{listen: 127.0.0.1:{outbound}}}
  backend: {{address: 127.0.0.1:{ctx.backend_port}, max_requests: 4096, max_event_streams: 4096}}
  # The load is one peer that sends as fast as it can.
  limits: {{max_body_bytes: 1073741824, max_requests_per_second_per_peer: 0, max_requests_per_peer: 4096}}
  state_dir: {ctx.dir}/b
registryd: {{socket: {ctx.dir}/b/registryd.sock}}
"""


def available(ctx):
    return None if ctx.find("MESH_PROXY_BIN", "mesh-proxy") else "deploy/release.sh, and MESH_PROXY_BIN=target/optimised/mesh-proxy"


def version(ctx):
    return ctx.version([ctx.find("MESH_PROXY_BIN", "mesh-proxy"), "--version"], r"mesh-proxy (\S+)")


def common_name(certificate):
    subject = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-subject"], check=True, capture_output=True, text=True)
    return re.search(r"CN *= *([\w.-]+)", subject.stdout).group(1)


def start(ctx):
    exe = ctx.find("MESH_PROXY_BIN", "mesh-proxy")
    peer = {"name": ctx.b_cn, "status": "online", "agents": [], "addresses": ["127.0.0.1"], "port": ctx.b_port}
    for side in ("a", "b"):
        os.makedirs(os.path.join(ctx.dir, side), exist_ok=True)
    ctx.write("a/roster.json", json.dumps({"revision": 1, "nodes": [peer]}))
    # Ports that the load does not use, beside those that it does.
    spare = ctx.a_port + 5000
    # mesh-proxy refuses to start with a certificate that does not name its node or that its own bundle does not
    # cover. The bench's check starts B with such certificates, to see that A refuses them.
    with open(ctx.b_ca) as root, open(ctx.b_cert) as chain:
        intermediates = chain.read().split("-----BEGIN CERTIFICATE-----")[2:]
        bundle = root.read() + "".join("-----BEGIN CERTIFICATE-----" + each for each in intermediates)
    conf_b = ctx.write("b.yaml", B.format(
        ctx=ctx, outbound=spare, node=common_name(ctx.b_cert), bundle=ctx.write("b-chain.pem", bundle)))
    conf_a = ctx.write("a.yaml", A.format(ctx=ctx, outbound=spare + 1, inbound=spare + 2))
    b = ctx.spawn("b", [exe, "--config", conf_b])
    a = ctx.spawn("a", [exe, "--config", conf_a])
    return {"a": [a], "b": [b]}
