//! The roster's copy on disk: a sidecar that starts while registryd is down still knows its peers.

use std::io;
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file;
use mesh_shared::local_api::Roster;

const FILE_NAME: &str = "roster.json";

/// The file.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// The file in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE_NAME) }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved last; `None`: nothing yet.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn read(&self) -> io::Result<Option<Roster>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves `roster` for the next start; a reader never sees half of it. Returns how many bytes it has.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, roster: &Roster) -> io::Result<usize> {
        let json = serde_json::to_vec(roster)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        // Two processes of this node run at the same time during an upgrade.
        atomic_file::replace(&self.path, &std::process::id().to_string(), &json, 0o600)?;
        Ok(json.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_and_a_bad_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(&folder.path().join("below"));
        assert_eq!(cache.read().unwrap(), None);
        let roster = Roster { revision: 7, ..Roster::default() };
        cache.write(&roster).unwrap();
        assert_eq!(cache.read().unwrap(), Some(roster));
        std::fs::write(cache.path(), "{\"revision\":").unwrap();
        assert!(cache.read().is_err());
    }
}
