//! systemd-resolved with a file of `deploy/dns`, in a network namespace and with files of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::network::Network;
use crate::process::Daemon;

/// Makes the namespace look like a host of its own to systemd-resolved: its user, its configuration, its `/run`.
const SCRIPT: &str = r#"
set -e
for file in passwd group; do
  cp /etc/$file "$0/$file"
done
echo 'systemd-resolve:x:996:996::/:/usr/sbin/nologin' >> "$0/passwd"
echo 'systemd-resolve:x:996:' >> "$0/group"
for file in passwd group; do
  mount --bind "$0/$file" /etc/$file
done
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d
chown 996:996 /run/systemd/resolve
cp "$1" /run/systemd/resolved.conf.d/mesh.conf
exec "$2"
"#;

/// Starts it inside `node`'s namespace with `snippet` as its configuration; `folder` is for its files. `None`, with a
/// loud line, where there is no such program.
pub fn start(network: &Network, node: usize, snippet: &Path, folder: &Path) -> Option<Daemon> {
    let Some((program, libraries)) = find() else {
        crate::skipped("no systemd-resolved here, and Debian's package could not be fetched");
        return None;
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(folder).arg(snippet).arg(program);
    command.env("LD_LIBRARY_PATH", libraries);
    Some(Daemon::start("systemd-resolved", &mut network.inside(node, &command)))
}

/// Where `deploy/prerequisites.sh` unpacked it, with the folders of its libraries.
fn find() -> Option<(PathBuf, String)> {
    let test = std::env::current_exe().ok()?;
    let tools = test.ancestors().nth(3)?.join("test-tools");
    let program = tools.join("lib/systemd/systemd-resolved");
    // By architecture, as in usr/lib/x86_64-linux-gnu/systemd.
    let architecture = std::fs::read_dir(tools.join("usr/lib")).ok()?.find_map(|folder| {
        let folder = folder.ok()?;
        folder.path().join("systemd").is_dir().then(|| folder.file_name())
    })?;
    let (usr, root) = (tools.join("usr/lib").join(&architecture), tools.join("lib").join(&architecture));
    let libraries = [usr.join("systemd"), usr, root].map(|folder| folder.display().to_string()).join(":");
    program.exists().then_some((program, libraries))
}
