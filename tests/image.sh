#!/usr/bin/env bash
# Builds deploy/container/Dockerfile with podman, and runs compose.yaml's containers from it, beside a node of plain processes.
# The images that both start from are made here, from Debian's packages (debootstrap), since no registry of images is asked.
#
#   tests/image.sh [--compile]
#
# Every step of the Dockerfile runs. In its build stage stands, in cargo's place, tests/image/cargo, which checks that
# the sources have come into the image and takes the programs of target/debug, or of $MESH_BIN. With --compile it is this machine's
# cargo that compiles there, without optimization. Needs root. Ends with 69 if Debian's packages cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=bookworm

. tests/programs.sh image
if [ "$(id -u)" -ne 0 ]; then
  echo "run this as root: it makes network namespaces and images" >&2
  exit 1
fi
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
deploy/prerequisites.sh image || exit "$EX_UNAVAILABLE"
compile=
[ "${1:-}" != --compile ] || compile=1

# crun does not start containers where both versions of cgroups are mounted. Here none is used, so one is hidden from it.
if [ -z "${MESH_IMAGE_MOUNTS:-}" ]; then
  MESH_IMAGE_MOUNTS=own exec unshare --mount "$0" "$@"
fi
[ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
work=$(mktemp -d)
rm -rf "$tools/storage"
mkdir "$work/podman" "$work/programs"
trap 'podman_here rm --all --force --time 1 >/dev/null 2>&1 || true; rm -rf "$work" "$tools/storage"' EXIT
# Nothing of this machine's own images, containers and volumes is touched. There may be no systemd to run health checks: the
# test runs them itself.
export DISABLE_HC_SYSTEMD=true
podman=(podman --root "$tools/storage/root" --runroot "$work/run" --tmpdir "$work/podman" --storage-driver vfs --cgroup-manager cgroupfs
  --events-backend none --runtime crun)
# podman's own limits may be higher than this process may set.
export RUN_OPTIONS="--pull=never --cgroups=disabled --ulimit nofile=4096:4096 --ulimit nproc=1024:1024"
podman_here() { "${podman[@]}" "$@"; }
build() {
  podman_here build --pull=never --layers=false --format docker --isolation chroot --network host "$@" >"$work/build.log" 2>&1 || {
    tail -40 "$work/build.log" >&2
    # apt-get's words for what it cannot download.
    ! grep -Eq 'Failed to fetch|Temporary failure resolving|Unable to locate package' "$work/build.log" || exit "$EX_UNAVAILABLE"
    exit 1
  }
}

step "a Debian $SUITE"
if [ ! -e "$tools/complete" ]; then
  rm -rf "$tools"
  mkdir -p "$tools"
  debootstrap --variant=minbase "$SUITE" "$tools/debian" >"$tools/log" 2>&1 || {
    tail -5 "$tools/log" >&2
    exit "$EX_UNAVAILABLE"
  }
  rm -f "$tools"/debian/var/cache/apt/archives/*.deb
  touch "$tools/complete"
fi

# base IMAGE: makes what stands in for an image of this name on Docker Hub; its Dockerfile is on standard input.
base() {
  grep -q "^FROM $1" deploy/container/Dockerfile || grep -q "image: $1\$" deploy/container/compose.yaml || {
    echo "tests/image.sh: neither Dockerfile nor compose file names $1 any more" >&2
    exit 1
  }
  build --tag "docker.io/library/$1" "${volumes[@]}" --file - "$work/programs"
}

step "images in place of those that Dockerfile and compose file start from"
volumes=()
tar --directory "$tools/debian" --create . | podman_here import --quiet - "docker.io/library/debian:$SUITE-slim" >/dev/null
base "python:3.13-slim" <<EOF
FROM debian:$SUITE-slim
RUN apt-get update && apt-get install --yes --no-install-recommends python3-minimal libpython3-stdlib python-is-python3
EOF
if [ -n "$compile" ]; then
  base "rust:1.95-$SUITE" <<EOF
FROM debian:$SUITE-slim
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libc6-dev make perl pkg-config ca-certificates
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=0
EOF
  volumes=(--volume "$(rustc --print sysroot):/usr/local/rust:ro" --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry")
else
  cp tests/image/cargo "$MESH_BIN"/{mesh-proxy,registryd,meshctl} "$work/programs/"
  # What cargo noted of their sources, as paths in the repository.
  sed 's/^[^:]*: //; s/ /\n/g' "$MESH_BIN"/{mesh-proxy,registryd,meshctl}.d | sed -n "s|^$PWD/||p" | sort -u >"$work/programs/sources"
  base "rust:1.95-$SUITE" <<EOF
FROM debian:$SUITE-slim
COPY mesh-proxy registryd meshctl sources /programs/
COPY cargo /usr/local/bin/
EOF
fi

step "the image"
build --tag docker.io/library/mesh --ignorefile deploy/container/Dockerfile.dockerignore "${volumes[@]}" --file deploy/container/Dockerfile .
for program in mesh-proxy registryd meshctl; do
  podman_here run --rm --network none $RUN_OPTIONS mesh "$program" --version
done

step "the containers"
timeout 150 python3 -B tests/image/run.py "$work" deploy/container/compose.yaml "${podman[@]}"
step "done"
