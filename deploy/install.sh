#!/usr/bin/env bash
# Installs the built programs, their users and their systemd units on this host. Starts nothing, and leaves a
# configuration that is there alone. Run it again to upgrade.
#
#   deploy/install.sh [--dry-run] [--from DIR]      DIR: where the programs were built (target/release)
#
# With DESTDIR set, everything goes below that folder and no users are made (for packaging and tests).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

from="${CARGO_TARGET_DIR:-$here/../target}/release"
run=()
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) run=(echo) ;;
    --from)
      from="${2:?--from needs a folder}"
      shift
      ;;
    *)
      echo "usage: $0 [--dry-run] [--from DIR]" >&2
      exit 2
      ;;
  esac
  shift
done
root="${DESTDIR:-}"

for program in mesh-proxy registryd meshctl; do
  if [ ! -x "$from/$program" ]; then
    echo "$from/$program is missing; build first: cargo build --release --locked --bins" >&2
    exit 1
  fi
done
if [ -z "$root" ] && [ ${#run[@]} -eq 0 ] && [ "$(id -u)" -ne 0 ]; then
  echo "run this as root, or look first with --dry-run" >&2
  exit 1
fi

if [ -z "$root" ]; then
  # The group may use registryd's socket. mesh-proxy's own user is the only one to read the node's key.
  getent group mesh >/dev/null || "${run[@]}" groupadd --system mesh
  for user in mesh-proxy registryd; do
    id -u "$user" >/dev/null 2>&1 ||
      "${run[@]}" useradd --system --gid mesh --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin "$user"
  done
  # On the CA's host, the only user to read the key that signs.
  getent group mesh-ca >/dev/null || "${run[@]}" groupadd --system mesh-ca
  id -u mesh-ca >/dev/null 2>&1 ||
    "${run[@]}" useradd --system --gid mesh-ca --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin mesh-ca
fi

# A running program is replaced, not written into: install removes the old file first.
for program in mesh-proxy registryd meshctl; do
  "${run[@]}" install -D -m 0755 "$from/$program" "$root/usr/local/bin/$program"
done
for unit in mesh-proxy.service mesh-proxy.socket registryd.service mesh-ca.service mesh-ca-renew.service \
  mesh-ca-renew.timer; do
  "${run[@]}" install -D -m 0644 "$here/systemd/$unit" "$root/etc/systemd/system/$unit"
done
if [ -e "$root/etc/mesh/mesh.yaml" ]; then
  echo "kept $root/etc/mesh/mesh.yaml"
else
  "${run[@]}" install -D -m 0644 "$here/mesh.yaml" "$root/etc/mesh/mesh.yaml"
fi
# Where systemd is installed but does not run (a container), there is nothing to tell it.
systemd=/run/systemd/system
if [ -z "$root" ] && [ -d "$systemd" ]; then
  "${run[@]}" systemctl daemon-reload
fi

if [ ${#run[@]} -gt 0 ]; then
  echo "nothing was changed (--dry-run)"
  exit
fi
start="sudo systemctl enable --now registryd mesh-proxy"
start_ca="sudo systemctl enable --now mesh-ca"
if [ ! -d "$systemd" ]; then
  start="systemd does not run here: start registryd (umask 0002) and mesh-proxy, each as its own user"
  start_ca="start meshctl ca serve as user mesh-ca with group mesh"
fi
cat <<NEXT
installed. Next, by invitation (deploy/docs/join.md):
  1. once, on one host: \`sudo meshctl ca init\`, sudo chown -R mesh-ca: /rivet-shared/rivet-ca, and
     $start_ca
  2. for each node, there: \`sudo meshctl invite <node>\`; what it prints, on the node
Or with files that you carry:
  1. edit /etc/mesh/mesh.yaml: node_name if it is not the host's name, the agents that live here, storage_dir
  2. certificates: \`sudo meshctl ca init\` once, on one host; then for each node
     \`sudo meshctl ca issue-node <node> <its address>\`, and give the key to its sidecar:
     sudo chown mesh-proxy /rivet-shared/rivet-ca/issued/<node>.key
  3. a folder for mesh.json alone, for registryd: sudo install -d -g mesh -m 2775 /rivet-shared/registry, and
     storage_dir: /rivet-shared/registry (who may write the CA's folder could replace the CA)
  4. sudo -u mesh-proxy mesh-proxy check && sudo -u registryd registryd check
  5. $start
NEXT
