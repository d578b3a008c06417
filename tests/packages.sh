#!/usr/bin/env bash
# The Debian packages, in a Debian of their own that this test makes (debootstrap) and boots (systemd-nspawn, without a
# network): install, check, start, call, upgrade with calls under way, remove, purge.
# The programs are those of target/debug, or of $MESH_BIN. Needs root. Ends with 69 if Debian's packages cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=bookworm

. tests/programs.sh packages
if [ "$(id -u)" -ne 0 ]; then
  echo "run this as root: it makes a Debian of its own and boots it" >&2
  exit 1
fi

PATH="$PATH:/usr/sbin:/sbin"
deploy/prerequisites.sh packages || exit "$EX_UNAVAILABLE"

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() {
  echo "tests/packages.sh: $*" >&2
  exit 1
}

work=$(mktemp -d)
root="$work/root"
started=()
cleanup() {
  status=$?
  if [ "$status" -ne 0 ] && [ -n "${inside:-}" ]; then
    within journalctl --no-pager -n 60 -u mesh-proxy -u registryd -u mesh-ca >&2 || true
  fi
  for pid in "${started[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT

step "packages, in two revisions"
for revision in 1 2; do
  deploy/packages.sh --quick --from "$MESH_BIN" --revision "$revision" --output "$work/debs$revision" >"$work/packages.log" 2>&1 || {
    cat "$work/packages.log" >&2
    exit 1
  }
done

step "a Debian $SUITE"
base="$tools/$SUITE"
if [ ! -e "$base/complete" ]; then
  rm -rf "$base"
  mkdir -p "$base"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,procps "$SUITE" "$base/root" >"$base/log" 2>&1 || {
    tail -5 "$base/log" >&2
    exit "$EX_UNAVAILABLE"
  }
  rm -f "$base"/root/var/cache/apt/archives/*.deb
  touch "$base/complete"
fi
cp -a --reflink=auto "$base/root" "$root"
mkdir "$root/debs"
mv "$work"/debs* "$root/debs/"

step "boot"
systemd-nspawn --quiet --directory "$root" --boot --register=no --keep-unit --private-network \
  --hostname ct110 --console=pipe </dev/null >"$work/boot.log" 2>&1 &
nspawn=$!
started+=("$nspawn")
inside=
# Runs a command in the booted Debian.
within() { nsenter --target "$inside" --all env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
# Runs a command of this machine in its network.
beside() { nsenter --target "$inside" --net "$@"; }
eventually() {
  local try
  for try in $(seq 240); do
    ! "$@" >/dev/null 2>&1 || return 0
    sleep 0.25
  done
  fail "not within a minute: $*"
}
booted() {
  inside=$(pgrep --parent "$nspawn" | head -1)
  [ -n "$inside" ] && within systemctl is-system-running | grep -Eq 'running|degraded'
}
for try in $(seq 240); do
  kill -0 "$nspawn" 2>/dev/null || break
  ! booted 2>/dev/null || break
  sleep 0.25
done
if ! booted 2>/dev/null; then
  tail -5 "$work/boot.log" >&2
  echo "##### NOT BOOTED: systemd-nspawn cannot boot a Debian here. Installing, the units, and purging are tested; #####" >&2
  echo "##### running, upgrading and stopping are NOT. Run tests/packages.sh where systemd-nspawn --boot works. #####" >&2
  inside=
  within() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
fi

debs() { (cd "$root" && printf '/%s\n' debs/debs"$1"/*.deb); }
active() { within systemctl is-active --quiet "$1"; }

step "install"
mapfile -t first < <(debs 1)
mapfile -t second < <(debs 2)
within dpkg --install "${first[@]}" >"$work/install.log" 2>&1 || {
  cat "$work/install.log" >&2
  exit 1
}
for user in mesh-proxy registryd; do
  [ "$(within id --groups --name "$user")" = mesh ] || fail "the user $user is not in group mesh alone"
done
for unit in mesh-proxy.service mesh-proxy.socket registryd.service; do
  [ ! -e "$root/etc/systemd/system/multi-user.target.wants/$unit" ] || fail "$unit is enabled by the installation"
  [ -z "$inside" ] || ! active "$unit" || fail "$unit is started by the installation"
done
for page in meshctl meshctl-ca-init meshctl-upgrade; do
  [ -e "$root/usr/share/man/man1/$page.1.gz" ] || fail "there is no man page $page.1"
done
for page in mesh-proxy registryd; do
  [ -e "$root/usr/share/man/man8/$page.8.gz" ] || fail "there is no man page $page.8"
done
bash -n "$root/usr/share/bash-completion/completions/meshctl"
mapfile -t units < <(cd "$root/usr/lib/systemd/system" && ls -d mesh-*.service mesh-*.socket registryd.service)
# Debian's own units have remarks too; only a line that names one of these counts.
verified=$(within systemd-analyze verify --man=no "${units[@]/#//usr/lib/systemd/system/}" 2>&1) || fail "systemd-analyze verify: $verified"
! grep -E 'mesh|registryd' <<<"$verified" || fail "systemd-analyze verify has remarks, see above"

if [ -n "$inside" ]; then
  step "a node, made from the example configuration"
  within sed -i 's|^  # node_name: ct110 .*|  node_name: ct110|; s|^  # storage_dir: .*|  storage_dir: /var/lib/registryd|; s|^  # advertise_host: .*|  advertise_host: 127.0.0.1|; s|^  # agents:  *# default: none.*|  agents: [opus]|' /etc/mesh/mesh.yaml
  within install -d -m 0755 /rivet-shared
  within meshctl ca init >/dev/null
  within meshctl ca issue-node ct110 127.0.0.1 >/dev/null
  within chown mesh-proxy /rivet-shared/rivet-ca/issued/ct110.key
  within systemctl enable --now registryd mesh-proxy
  # In place of the shell that waits for it, so that it is what is ended.
  (exec nsenter --target "$inside" --net python3 -B tests/packages/agent.py) &
  started+=("$!")
  eventually within meshctl ping
  eventually within meshctl status
  call() { beside curl --no-buffer --fail --silent --show-error --max-time 120 "http://127.0.0.1:3001/nodes/ct110/$1"; }
  eventually call quick

  step "upgrade with calls under way"
  main_pid() { within systemctl show --property MainPID --value "$1"; }
  before=$(main_pid mesh-proxy)
  call slow >"$work/slow" 2>&1 &
  slow=$!
  started+=("$slow")
  # One call after the other, each on a connection of its own, until there is a file "stop".
  (
    while [ ! -e "$work/stop" ]; do
      [ "$(call quick 2>&1)" = "done" ] && echo ok || echo failed
    done
  ) >"$work/steady" &
  steady=$!
  started+=("$steady")
  eventually grep -q more "$work/slow"
  registry=$(main_pid registryd)
  within dpkg --install "${second[@]}" >"$work/upgrade.log" 2>&1 || {
    cat "$work/upgrade.log" >&2
    exit 1
  }
  [ "$(main_pid mesh-proxy)" != "$before" ] || fail "mesh-proxy is the process of before the upgrade"
  [ "$(main_pid registryd)" != "$registry" ] || fail "registryd is the process of before the upgrade"
  eventually within meshctl status
  within kill -0 "$before" || fail "the process of before has ended, although a call was under way"
  lines=$(wc -l <"$work/slow")
  more() { [ "$(wc -l <"$work/slow")" -gt "$lines" ]; }
  eventually more
  call enough >/dev/null
  wait "$slow" || fail "the slow call was cut off: $(cat "$work/slow")"
  [ "$(tail -n 1 "$work/slow")" = "done" ] || fail "the slow call did not end as it should: $(tail -n 1 "$work/slow")"
  touch "$work/stop"
  wait "$steady"
  ! grep -q failed "$work/steady" || fail "$(grep -c failed "$work/steady") of $(wc -l <"$work/steady") calls failed during the upgrade"
  old_is_gone() { ! within kill -0 "$before"; }
  eventually old_is_gone
  active mesh-proxy || fail "mesh-proxy is not active after the process of before has ended"
  grep -q 'storage_dir: /var/lib/registryd' "$root/etc/mesh/mesh.yaml" || fail "the upgrade replaced a changed configuration"
  step "$(wc -l <"$work/steady") short calls and a long one during the upgrade, none failed"
fi

packages() { for each in "${second[@]##*/}"; do echo "${each%%_*}"; done; }
mapfile -t names < <(packages)

step "remove"
within dpkg --remove "${names[@]}" >"$work/remove.log" 2>&1 || {
  cat "$work/remove.log" >&2
  exit 1
}
[ ! -e "$root/usr/bin/mesh-proxy" ] || fail "the program is still there"
[ -e "$root/etc/mesh/mesh.yaml" ] || fail "the configuration is gone before a purge"
if [ -n "$inside" ]; then
  ! active mesh-proxy || fail "mesh-proxy runs after it was removed"
  ! active registryd || fail "registryd runs after it was removed"
  [ -e "$root/var/lib/registryd/mesh.json" ] || fail "the registry is gone before a purge"
fi

step "purge"
within dpkg --purge "${names[@]}" >"$work/purge.log" 2>&1 || {
  cat "$work/purge.log" >&2
  exit 1
}
for gone in /etc/mesh/mesh.yaml /var/lib/mesh-proxy /var/lib/registryd; do
  [ ! -e "$root$gone" ] || fail "$gone is still there after a purge"
done
[ -z "$(find "$root/etc/systemd/system" -name 'mesh-*' -o -name 'registryd*')" ] || fail "units are still enabled after a purge"
if [ -n "$inside" ]; then
  [ -n "$(find "$root/etc/mesh/ca-root" -name '*.key')" ] || fail "the key of the CA's root is gone"
  grep -q 'kept /etc/mesh/ca-root' "$work/purge.log" || grep -q 'kept what else is in /etc/mesh' "$work/purge.log" ||
    fail "nobody is told that the CA's keys are still there"
fi

step "all of the packages' tests passed"
