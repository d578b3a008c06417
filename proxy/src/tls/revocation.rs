//! The newest revocation lists, kept for the next start: a list never goes back to an older one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file;
use mesh_shared::certificate::{Material, MaterialError};
use mesh_shared::revocation::{self, RevocationList};
use rustls::pki_types::UnixTime;

const FILE: &str = "revocation-lists.pem";

/// The file in `proxy.state_dir`.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// The memory in this folder, whether it exists or not.
    pub fn below(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE) }
    }

    /// The lists that were in use before. What cannot be read is as good as none, apart from a line in the log.
    pub fn recall(&self) -> Vec<RevocationList> {
        match revocation::read(&self.path) {
            Ok(lists) => lists,
            Err(MaterialError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(target: "Mesh", "earlier revocation lists are not known: {error}");
                Vec::new()
            }
        }
    }

    /// Keeps the lists that count now. Without the file, an older list would count again after the next start.
    pub fn keep(&self, material: &Material) {
        let lists = material.revocations(UnixTime::now()).lists;
        let text: String = lists.iter().map(|list| list.pem.as_str()).collect();
        if lists.is_empty() || std::fs::read_to_string(&self.path).is_ok_and(|kept| kept == text) {
            return;
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let kept = std::fs::create_dir_all(folder)
            .and_then(|()| atomic_file::replace(&self.path, "mesh-proxy", text.as_bytes(), 0o600));
        if let Err(error) = kept {
            tracing::warn!(
                target: "Mesh",
                "cannot keep the revocation lists in {} (proxy.state_dir): {error}; an older list would count again \
                 after a restart",
                self.path.display()
            );
        }
    }
}

/// Adds the remembered lists to those of the files; returns what is wrong with the files, each in a sentence.
pub fn join(material: &mut Material, remembered: Vec<RevocationList>) -> Vec<String> {
    let now = UnixTime::now();
    let of_files = material.revocations(now);
    let mut problems = Vec::new();
    let mut told = |list: &RevocationList, what: fmt::Arguments<'_>| {
        problems.push(format!("the revocation list of {} (proxy.crl_path) {what}", list.issuer_name));
    };
    for list in &of_files.forged {
        told(list, format_args!("was not signed by that CA, so it does not count"));
    }
    for list in &of_files.coming {
        told(
            list,
            format_args!("says that it was made in the future, so it does not count yet (is a clock wrong?)"),
        );
    }
    for list in &of_files.lists {
        let newer = |known: &&RevocationList| known.is_about_the_same_as(list) && known.is_newer_than(list);
        if remembered.iter().any(|known| newer(&known)) {
            told(
                list,
                format_args!(
                    "is older than the one in use, which stays in use; was an old file put back? Publish a new list"
                ),
            );
        }
    }
    // Only of issuers that are still trusted or named in the files: nothing piles up.
    let mine = |list: &RevocationList| {
        let anchors = material.bundle.anchors();
        anchors.iter().any(|anchor| anchor.subject == list.issuer)
            || of_files.lists.iter().any(|known| known.issuer == list.issuer)
    };
    let more: Vec<_> = remembered.into_iter().filter(|list| mine(list)).collect();
    material.crls.extend(more);
    problems
}
