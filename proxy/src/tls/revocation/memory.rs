//! The newest revocation lists on disk, for the next start.

use std::io;
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file;
use mesh_shared::certificate::MaterialError;
use mesh_shared::revocation::{self, RevocationList};

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

    /// Keeps these lists. Without the file, an older list would count again after the next start.
    pub fn keep(&self, lists: &[RevocationList]) {
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
