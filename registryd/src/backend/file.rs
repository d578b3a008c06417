//! The only code that touches `mesh.json`.
//!
//! Reading is one read and one parse. Changing is: an exclusive lock on `mesh.json.lock`, read, change, write to a
//! temporary file in the same folder, sync, rename, sync the folder. A reader never sees half a file of ours and a
//! crash at any instruction loses nothing that was reported as written. Everything here blocks, and may hang for as
//! long as a mount hangs; [`worker`] runs it on threads of its own.
//!
//! Where `mesh.json` is a symbolic link, all of this happens next to the file that it leads to, and the link stays:
//! that folder is the one which all who share the file have in common, so only a lock there keeps them apart.

mod lock;
pub mod worker;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_shared::NodeName;
use mesh_shared::atomic_file::{self, Draft};
use mesh_shared::json;
use mesh_shared::registry::{MAX_BYTES, Registry, RegistryError};

pub use lock::LockError;

use super::{Ledger, Wish};

/// A ledger that says what the whole file has to say.
pub trait Amend: Ledger {
    /// Takes in the registry as it is at this moment, and brings it up to date. Returns whether to write it. May be
    /// asked again with newer content before anything is written.
    fn amend(&self, registry: &mut Registry, wish: &Wish) -> bool;
    /// What to start from where the registry is gone or broken.
    fn last_good(&self) -> Option<Arc<Registry>>;
}

/// How often half-written content is read again before it counts as bad, and the pause between.
const REREADS: u32 = 40;
const REREAD_PAUSE: Duration = Duration::from_millis(50);
/// How many contents that were set aside are kept.
const MAX_SET_ASIDE: usize = 5;
/// How often a change is made again because somebody wrote meanwhile; programs that take no lock may do so all the time.
const RETRIES: u32 = 8;
/// How many symbolic links may lead from one to the next, as for the kernel.
const MAX_LINKS: usize = 40;

/// Why the registry cannot be read or written. In words that stand alone.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum StoreError {
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{} {source}", path.display())]
    Content { path: PathBuf, source: RegistryError },
    #[error("{} is left as it is: what was to be written could not be read again ({reason})", path.display())]
    Unreadable { path: PathBuf, reason: String },
}

impl StoreError {
    /// Whether there is no file, which may mean that there never was one.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::NotFound)
    }

    /// Whether the content is broken in a way that no version of any program would write whole.
    fn is_corrupt(&self) -> bool {
        use RegistryError::{Empty, FlatArray, Json, Shape, TooLarge, Version};
        match self {
            Self::Content { source, .. } => match source {
                Empty | TooLarge(_) | Json(_) | Shape(_) => true,
                FlatArray | Version(_) => false,
            },
            Self::Io { .. } | Self::Lock(_) | Self::Unreadable { .. } => false,
        }
    }

    /// Whether there is nothing in the file that could be lost.
    fn is_empty(&self) -> bool {
        matches!(self, Self::Content { source: RegistryError::Empty, .. })
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room on the storage",
        ErrorKind::ReadOnlyFilesystem => "; mount the storage for writing",
        ErrorKind::PermissionDenied => "; give this user access to the folder and its files",
        ErrorKind::StaleNetworkFileHandle => "; mount the storage again",
        ErrorKind::NotFound => "; mount or create the folder named by mesh.storage_dir",
        ErrorKind::ResourceBusy => {
            "; the file is a mount of its own, which cannot be replaced: mount its folder instead (mesh.storage_dir)"
        }
        _ => "",
    }
}

/// What tells two states of a file apart without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self {
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// What a write did.
#[derive(Debug, Default)]
pub struct Written {
    /// Whether the file was replaced; `false` where nothing had to change.
    pub replaced: bool,
    /// Where broken content was set aside.
    pub set_aside: Option<PathBuf>,
}

/// One registry file.
#[derive(Debug, Clone)]
pub struct Store {
    node: NodeName,
    path: PathBuf,
    lock: lock::Lock,
}

impl Store {
    /// The store of `node` in a file. Touches nothing yet.
    pub fn new(path: PathBuf, node: &NodeName) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lock = lock::Lock::new(path.with_file_name(format!("{name}.lock")), node);
        Self { node: node.clone(), path, lock }
    }

    /// The registry file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the file, without reading it. Opening it first makes NFS ask the server.
    ///
    /// # Errors
    /// A missing or unreachable file.
    pub fn stamp(&self) -> Result<Stamp, StoreError> {
        let open = File::open(&self.path).and_then(|file| file.metadata());
        open.map(|metadata| Stamp::of(&metadata)).map_err(|source| self.failed("read", source))
    }

    /// Reads the file once.
    ///
    /// # Errors
    /// A missing or unreachable file; content that is not wholly a registry, which may be half-written.
    pub fn read(&self) -> Result<(Registry, Stamp), StoreError> {
        self.read_after(&Registry::empty())
    }

    /// As [`Self::read`]. Entries that stand there as they do in `before` are shared with it and cost little.
    ///
    /// # Errors
    /// As there.
    pub fn read_after(&self, before: &Registry) -> Result<(Registry, Stamp), StoreError> {
        let failed = |source| self.failed("read", source);
        let bad = |source| StoreError::Content { path: self.path.clone(), source };
        let file = File::open(&self.path).map_err(failed)?;
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        if stamp.length > MAX_BYTES {
            return Err(bad(RegistryError::TooLarge(stamp.length)));
        }
        let mut content = Vec::with_capacity(stamp.length as usize + 1);
        // It may grow meanwhile.
        file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
        Ok((Registry::parse_after(&content, before).map_err(bad)?, stamp))
    }

    /// Changes the file under the lock: `change` gets the content as it is now and says whether to write it back.
    ///
    /// `last_good` is what to start from where the file is gone or stays broken; without it, a file that is missing
    /// or stays empty is created and a broken one is never touched.
    ///
    /// # Errors
    /// A lock that somebody else holds for too long; a file that cannot be read or written; broken content without
    /// a last good view; a change after which the file could not be read.
    pub fn change(
        &self,
        last_good: Option<&Registry>,
        mut change: impl FnMut(&mut Registry) -> bool,
    ) -> Result<Written, StoreError> {
        self.make_folder()?;
        match self.link_target() {
            Some(path) => Self::new(path, &self.node).change_here(last_good, &mut change),
            None => self.change_here(last_good, &mut change),
        }
    }

    /// Where the file really lies, if the path is a symbolic link; the file itself may be missing.
    fn link_target(&self) -> Option<PathBuf> {
        let mut path = self.path.clone();
        for _ in 0..MAX_LINKS {
            let Ok(target) = fs::read_link(&path) else { break };
            path.set_file_name(target);
        }
        (path != self.path).then_some(path)
    }

    fn change_here(
        &self,
        last_good: Option<&Registry>,
        change: &mut impl FnMut(&mut Registry) -> bool,
    ) -> Result<Written, StoreError> {
        let _held = self.lock.acquire()?;
        let mut retries = 0;
        loop {
            let (mut registry, read, broken) =
                match self.read_settled(last_good.unwrap_or(&Registry::empty())) {
                    Ok((registry, stamp)) => (registry, Some(stamp), false),
                    Err(error) if error.is_missing() || error.is_empty() => {
                        (last_good.cloned().unwrap_or_else(Registry::empty), self.stamp().ok(), false)
                    }
                    Err(error) => match last_good {
                        Some(last_good) if error.is_corrupt() => (last_good.clone(), self.stamp().ok(), true),
                        _ => return Err(error),
                    },
                };
            let fresh = read.is_none_or(|read| read.length == 0);
            let before = registry.clone();
            let wanted = change(&mut registry) || broken || fresh;
            if !wanted {
                return Ok(Written::default());
            }
            let draft = self.draft(&registry, &before)?;
            // Programs that take no lock may have written since.
            if self.stamp().ok() != read && retries < RETRIES {
                retries += 1;
                continue;
            }
            let set_aside = match broken {
                // Only now that the replacement is on disk.
                true => Some(self.keep_broken().map_err(|source| self.failed("set aside", source))?),
                false => None,
            };
            draft.replace().map_err(|source| self.failed("replace", source))?;
            return Ok(Written { replaced: true, set_aside });
        }
    }

    /// Reads until the content is whole: a program that writes in place may be in the middle of it.
    fn read_settled(&self, before: &Registry) -> Result<(Registry, Stamp), StoreError> {
        let mut rereads = 0;
        loop {
            match self.read_after(before) {
                Ok(read) => return Ok(read),
                Err(error) if error.is_corrupt() && rereads < REREADS => rereads += 1,
                Err(error) => return Err(error),
            }
            std::thread::sleep(REREAD_PAUSE);
        }
    }

    /// Makes the configured folder itself, not those above it: a mount that is missing has to come back, not be
    /// imitated on the disk below.
    fn make_folder(&self) -> Result<(), StoreError> {
        let folder = self.folder();
        match fs::create_dir(folder) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                if folder.is_dir() {
                    return Ok(());
                }
                Err(StoreError::Io { action: "create", path: folder.into(), source })
            }
            _ => Ok(()),
        }
    }

    /// Gives the broken content a second name, unless it is kept under one already. Only the newest are kept.
    fn keep_broken(&self) -> io::Result<PathBuf> {
        let prefix = format!("{}.corrupt-", self.path.file_name().unwrap_or_default().to_string_lossy());
        let mut kept: Vec<(u128, PathBuf)> = Vec::new();
        for file in fs::read_dir(self.folder())? {
            let file = file?;
            let since = file.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
            kept.extend(since.map(|epoch_ms| (epoch_ms, file.path())));
        }
        kept.sort();
        for (_, path) in &kept {
            if same_content(path, &self.path)? {
                return Ok(path.clone());
            }
        }
        let epoch_ms = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let aside = self.path.with_file_name(format!("{prefix}{epoch_ms}"));
        // A second name for the broken content rather than moving it: at no moment is there no mesh.json.
        if fs::hard_link(&self.path, &aside).is_err() {
            fs::copy(&self.path, &aside)?;
        }
        let excess = (kept.len() + 1).saturating_sub(MAX_SET_ASIDE);
        for (_, oldest) in kept.into_iter().take(excess) {
            fs::remove_file(oldest)?;
        }
        Ok(aside)
    }

    /// The content, complete and on disk. Nothing is written that could not be read: one such file would stop the
    /// whole mesh. What it was `before` could be.
    fn draft(&self, registry: &Registry, before: &Registry) -> Result<Draft, StoreError> {
        let content = registry.to_json();
        let unreadable = |reason: String| StoreError::Unreadable { path: self.path.clone(), reason };
        Registry::parse_after(&content, registry).map_err(|error| {
            unreadable(match error {
                RegistryError::Json(error) => error.to_string(),
                other => other.to_string(),
            })
        })?;
        for entry in registry.entries_since(before).filter(|entry| entry.node().is_some()) {
            // As deep as in the file: other readers have limits that ours does not.
            let deep = json::read::<serde_json::Value>(&format!("[[{}]]", entry.text()));
            deep.map_err(|error| unreadable(error.to_string()))?;
        }
        let write = || -> io::Result<Draft> {
            // One name per node: what a killed process leaves behind is removed by its successor.
            let draft = Draft::write(&self.path, self.node.as_str(), &content)?;
            // Other programs and users keep the access that they have.
            let mode = match fs::metadata(&self.path) {
                Ok(before) => {
                    draft.keep_owner();
                    before.mode() & 0o777
                }
                Err(_) => 0o664,
            };
            match draft.set_mode(mode) {
                // A file system without modes of its own (SMB, some FUSE): everyone has the mount's.
                Err(error) if has_no_modes(&error) => {}
                outcome => outcome?,
            }
            Ok(draft)
        };
        write().map_err(|source| StoreError::Io { action: "write beside", path: self.path.clone(), source })
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { action, path: self.path.clone(), source }
    }
}

fn has_no_modes(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied || atomic_file::is_unsupported(error)
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (io::BufReader::new(one).bytes(), io::BufReader::new(other).bytes());
    loop {
        match (one.next().transpose()?, other.next().transpose()?) {
            (None, None) => return Ok(true),
            (a, b) if a != b => return Ok(false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
