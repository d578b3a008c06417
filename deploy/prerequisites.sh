#!/usr/bin/env bash
# Installs what is missing for building (no argument), for deploy/release.sh ("release"), for building and testing ("test"),
# for Debian packages ("package"), for testing those ("packages"), for tests/image.sh ("image"), tests/manifests.sh
# ("manifests"), tests/telemetry.sh ("telemetry"), tests/sdk.sh ("sdk") or tests/dashboard.sh ("dashboard").
# Does nothing, quickly, when all is there. Needs apt and root or sudo only if something is missing.
set -euo pipefail

# command:package, where the names differ; pingora's and aws-lc's builds want cmake and a C compiler, etcd-client's protoc.
need=(cc:gcc c++:g++ make:make cmake:cmake pkg-config:pkg-config perl:perl protoc:protobuf-compiler)
what="${1:-build}"
case "$what" in
  build) ;;
  test)
    need+=(openssl:openssl node:nodejs curl:curl dnsmasq:dnsmasq-base dig:bind9-dnsutils ip:iproute2
      etcd:etcd-server etcdctl:etcd-client faketime:faketime fusermount3:fuse3 mount:mount python3:python3 git:git strace:strace)
    ;;
  release)
    host=$(rustc -vV | sed -n 's/^host: //p')
    llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    need=(strip:binutils python3:python3)
    # rustup's component llvm-tools has it too.
    [ -x "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" ] ||
      need+=("/usr/lib/llvm-$llvm/bin/llvm-profdata:llvm-$llvm")
    [ "$(uname -m)" != x86_64 ] || need+=("/usr/lib/llvm-$llvm/bin/llvm-bolt:bolt-$llvm")
    ;;
  package) need+=(dpkg-shlibdeps:dpkg-dev strip:binutils gzip:gzip xz:xz-utils) ;;
  packages) need+=(debootstrap:debootstrap systemd-nspawn:systemd-container nsenter:util-linux curl:curl python3:python3) ;;
  image) need=(debootstrap:debootstrap podman:podman crun:crun conmon:conmon ip:iproute2 python3:python3) ;;
  manifests | telemetry) need=(python3:python3) ;;
  sdk) need=(curl:curl python3:python3) ;;
  dashboard) need=(node:nodejs npm:npm chromium:chromium) ;;
  *)
    echo "usage: $0 [build|release|test|package|packages|image|manifests|telemetry|sdk|dashboard]" >&2
    exit 2
    ;;
esac

# dnsmasq, ip and nginx lie in sbin, which a user's PATH may lack.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
tools="${CARGO_TARGET_DIR:-target}/test-tools"

# Whatever is downloaded is tried up to four times.
apt() {
  local as_root=()
  if [ "$(id -u)" -ne 0 ] && [ "$1" != download ]; then
    if ! command -v sudo >/dev/null; then
      echo "Please run as root: apt-get $*" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 "$@"
}

# Package lists may be absent (a fresh container) or old; then fetch them and try once more.
install() {
  if ! command -v apt-get >/dev/null; then
    echo "Please install these by hand (Debian's package names): $*" >&2
    return 1
  fi
  echo "installing: $*"
  apt install -y --no-install-recommends "$@" >/dev/null 2>&1 || {
    apt update
    apt install -y --no-install-recommends "$@"
  }
}

# unpack FOLDER PACKAGE...: for what would do something to this machine if it were installed.
unpack() {
  local folder="$1" packages status=0
  shift
  echo "unpacking $1 into $folder"
  packages=$(mktemp -d)
  download() { (cd "$packages" && apt download "$@") >/dev/null 2>&1; }
  download "$@" || { apt update && download "$@"; } || {
    echo "cannot download $*" >&2
    status=1
  }
  mkdir -p "$folder"
  for package in "$packages"/*.deb; do
    [ ! -e "$package" ] || dpkg-deb -x "$package" "$folder"
  done
  rm -rf "$packages"
  return $status
}

missing=()
for each in "${need[@]}"; do
  command -v "${each%%:*}" >/dev/null || missing+=("${each##*:}")
done
# Configurations are checked against their JSON Schema by another program than ours.
if [ "$what" = test ] && ! python3 -c 'import jsonschema' 2>/dev/null && ! /usr/bin/python3 -c 'import jsonschema' 2>/dev/null; then
  missing+=(python3-jsonschema)
fi
if [ "$what" = image ] && ! python3 -c 'import yaml' 2>/dev/null; then
  missing+=(python3-yaml)
fi
# Debian's python3 comes without what makes a virtual environment.
python_only=
[[ "$what" != sdk && "$what" != manifests && "$what" != telemetry ]] || python_only=1
if [ -n "$python_only" ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
  missing+=(python3-venv)
fi
# What protoc includes; an archive of protoc brings it beside itself.
for folder in /usr/include "$(dirname "$(command -v protoc || echo /usr/bin/protoc)")/../include"; do
  [ ! -e "$folder/google/protobuf/descriptor.proto" ] || includes=1
done
compiles=1
[[ -z "$python_only" && "$what" != image && "$what" != dashboard ]] || compiles=
[ -z "$compiles" ] || [ -n "${includes:-}" ] || missing+=(libprotobuf-dev)
[ ${#missing[@]} -eq 0 ] || install "${missing[@]}"

# Installed, systemd-resolved would become this machine's resolver. The one test of it says so if it is not there. The
# other packages are libraries that a small machine lacks.
if [ "$what" = test ] && [ ! -e "$tools/lib/systemd/systemd-resolved" ] && command -v apt-get >/dev/null; then
  unpack "$tools" systemd-resolved libsystemd-shared libip4tc2 libkmod2 || true
fi
# Installed, nginx would be started, on port 80.
if [ "$what" = sdk ] && ! command -v nginx >/dev/null && [ ! -e "$tools/sdk/nginx/usr/sbin/nginx" ]; then
  unpack "$tools/sdk/nginx" nginx
fi

# Installed, Prometheus would be started, on port 9090.
if [ "$what" = telemetry ] && ! { command -v promtool && command -v prometheus; } >/dev/null &&
  [ ! -e "$tools/telemetry/prometheus/usr/bin/promtool" ]; then
  unpack "$tools/telemetry/prometheus" prometheus
fi

if [ -n "$compiles" ] && ! command -v cargo >/dev/null && [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
  echo "Please install Rust 1.95 or newer: https://rustup.rs" >&2
  exit 1
fi
