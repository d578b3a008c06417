//! Who else on this host could read a private key, or replace a file.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// In words, whom a private key's file is open to beyond its owner and a group that may read it; `None`: nobody,
/// or there is no such file.
pub fn exposure(key: &Path) -> Option<String> {
    let mode = key.metadata().ok()?.permissions().mode() & 0o777;
    let open = match (mode & 0o007, mode & 0o030) {
        (0, 0) => return None,
        (0, _) => "changed by its group",
        _ => "read by everyone",
    };
    Some(format!("key {} can be {open} (mode {mode:04o}); chmod 600 it", key.display()))
}

/// Who, apart from the owners, could replace the file at `path` by replacing it or a folder above it; a sentence that says
/// what to do. `None`: nobody, as far as it can be seen.
///
/// In a sticky folder only owners can rename what is theirs. A group of the owner's own number is taken for one that the
/// owner has alone.
pub fn replaceable(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mut below = path.as_path();
    for folder in path.ancestors().skip(1) {
        let found = folder.metadata().ok()?;
        let (mode, sticky) = (found.mode(), found.mode() & 0o1000 != 0);
        let by_group = mode & 0o020 != 0 && found.gid() != 0 && found.gid() != found.uid();
        let who = match (mode & 0o002 != 0, by_group) {
            (true, _) => Some("everyone on this host".to_owned()),
            (false, true) => Some(format!("every member of group {}", found.gid())),
            (false, false) => None,
        };
        if let Some(who) = who.filter(|_| !sticky) {
            return Some(format!(
                "{who} can replace {} in {}, and with it what this node trusts: let root alone write {}, and keep mesh.json \
                 in a folder of its own (mesh.storage_dir; deploy/docs/by-hand.md)",
                below.display(),
                folder.display(),
                folder.display()
            ));
        }
        below = folder;
    }
    None
}
