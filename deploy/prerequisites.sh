#!/usr/bin/env bash
# Installs what is missing for building (no argument), or for building and testing ("test").
# Does nothing, quickly, when all is there. Needs apt and root or sudo only if something is missing.
set -euo pipefail

# command:package, where the names differ; pingora's and aws-lc's builds want cmake and a C compiler, etcd-client's protoc.
need=(cc:gcc c++:g++ make:make cmake:cmake pkg-config:pkg-config perl:perl protoc:protobuf-compiler)
case "${1:-build}" in
  build) ;;
  test)
    need+=(openssl:openssl node:nodejs curl:curl dnsmasq:dnsmasq-base dig:bind9-dnsutils ip:iproute2
      etcd:etcd-server etcdctl:etcd-client faketime:faketime fusermount3:fuse3 mount:mount python3:python3 git:git strace:strace)
    ;;
  *)
    echo "usage: $0 [build|test]" >&2
    exit 2
    ;;
esac

# dnsmasq and ip lie in sbin, which a user's PATH may lack.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
missing=()
for each in "${need[@]}"; do
  command -v "${each%%:*}" >/dev/null || missing+=("${each##*:}")
done
# What protoc includes; an archive of protoc brings it beside itself.
for folder in /usr/include "$(dirname "$(command -v protoc || echo /usr/bin/protoc)")/../include"; do
  [ ! -e "$folder/google/protobuf/descriptor.proto" ] || includes=1
done
[ -n "${includes:-}" ] || missing+=(libprotobuf-dev)

if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "Please install these by hand (Debian's package names): ${missing[*]}" >&2
    exit 1
  fi
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Please run as root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  install=(apt-get install -y --no-install-recommends "${missing[@]}")
  # Package lists may be absent (a fresh container) or old; then fetch them and try once more.
  "${as_root[@]}" "${install[@]}" >/dev/null 2>&1 || {
    "${as_root[@]}" apt-get update
    "${as_root[@]}" "${install[@]}"
  }
fi

# systemd-resolved is only unpacked, with the libraries that a small machine lacks, for one test: installed, it would
# become this machine's resolver.
tools="${CARGO_TARGET_DIR:-target}/test-tools"
if [ "${1:-build}" = test ] && [ ! -e "$tools/lib/systemd/systemd-resolved" ] && command -v apt-get >/dev/null; then
  echo "unpacking systemd-resolved into $tools"
  packages=$(mktemp -d)
  mkdir -p "$tools"
  fetch() { (cd "$packages" && apt-get download systemd-resolved libsystemd-shared libip4tc2 libkmod2) >/dev/null 2>&1; }
  fetch || { [ "$(id -u)" -eq 0 ] && apt-get update && fetch; } || echo "cannot fetch systemd-resolved" >&2
  for package in "$packages"/*.deb; do
    [ ! -e "$package" ] || dpkg-deb -x "$package" "$tools"
  done
  rm -rf "$packages"
fi

if ! command -v cargo >/dev/null && [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
  echo "Please install Rust 1.95 or newer: https://rustup.rs" >&2
  exit 1
fi
