#!/usr/bin/env bash
# Makes Debian packages of mesh-proxy, registryd, meshctl and mesh-ca below target/debian. What is in each, its Cargo.toml
# says (package.metadata.deb); what happens when it is installed and removed, the scripts in deploy/debian.
#
#   deploy/packages.sh [--from DIR] [--revision N] [--output DIR] [--quick]
#
# DIR: programs that are built already; without it they are built for release. --quick makes larger files, for tests. Installs cargo-deb by name if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
from=
revision=1
compress=(--compress-system)
output="$target/debian"
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) compress+=(--fast) ;;
    --from)
      from="$(realpath "${2:?--from needs a folder}")"
      shift
      ;;
    --revision)
      revision="${2:?--revision needs a number}"
      shift
      ;;
    --output)
      output="$(realpath -m "${2:?--output needs a folder}")"
      shift
      ;;
    *)
      echo "usage: $0 [--from DIR] [--revision N] [--output DIR] [--quick]" >&2
      exit 2
      ;;
  esac
  shift
done

deploy/prerequisites.sh package
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
if ! cargo deb --version >/dev/null 2>&1; then
  # Without its default features it uses the xz command.
  cargo install cargo-deb --locked --no-default-features
fi
if [ -z "$from" ]; then
  cargo build --release --locked --bins
  from="$target/release"
fi

# cargo-deb takes what is built from <target>/release; this one holds nothing else.
staged="$target/packages"
rm -rf "$staged"
mkdir -p "$staged/release/units" "$staged/release/man" "$staged/release/completions" "$output"
cp "$from"/{mesh-proxy,registryd,meshctl} "$staged/release/"
# deploy/install.sh, for which the units are written, leaves /usr/bin to packages.
for unit in deploy/systemd/*; do
  sed 's|/usr/local/bin/|/usr/bin/|' "$unit" >"$staged/release/units/${unit##*/}"
done
"$from/meshctl" man "$staged/release/man"
gzip -9n "$staged"/release/man/*/*
for shell in bash zsh fish; do
  "$from/meshctl" completions "$shell" >"$staged/release/completions/meshctl.$shell"
done

# mesh-ca is the unit and the user of the CA's process, `meshctl ca serve`.
crates=(mesh-proxy registryd meshctl mesh-ca)
for crate in "${crates[@]}"; do
  CARGO_TARGET_DIR="$staged" cargo deb --quiet --locked --no-build --strip "${compress[@]}" \
    --deb-revision "$revision" --output "$output/" --package "$crate"
done
rm -rf "$staged"
