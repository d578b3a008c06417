//! The one lock over every change of a CA's folder.
//!
//! It is an flock, which Linux carries over NFS as a lock of the whole file, so it holds between hosts that share the
//! folder. The kernel drops it with the process that has it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_shared::logging::Excerpt;
use rustix::fs::OFlags;

use crate::error::CaError;
use crate::files::belong_to_folder;

/// How long to wait for other holders: many renewals may queue, and a long RSA key takes seconds to make.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);
/// Whoever may open the file may hold it.
const MODE: u32 = 0o600;

/// Held while a CA's folder is changed, until dropped. Not reentrant: a thread that holds one and asks for another waits
/// for itself, and gives up after a minute.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Waits for the lock on a file, which is made if need be and belongs to the owner of its folder.
    ///
    /// # Errors
    /// The file cannot be made or is not a plain one; somebody has held the lock for a minute.
    pub(crate) fn acquire(path: &Path, holder: &str) -> Result<Self, CaError> {
        let failed = |source| CaError::File { what: "lock", path: path.into(), source };
        let started = Instant::now();
        loop {
            let mut file = open(path).map_err(failed)?;
            loop {
                match file.try_lock() {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) if started.elapsed() < WAIT_LIMIT => {
                        std::thread::sleep(PAUSE);
                    }
                    Err(TryLockError::WouldBlock) => {
                        let path = PathBuf::from(path);
                        return Err(CaError::Locked { path, holder: told(&mut file) });
                    }
                    Err(TryLockError::Error(source)) => return Err(failed(source)),
                }
            }
            // Whoever removes the file makes others lock a new one: the lock counts only on the file that is there.
            let ours = file.metadata().map_err(failed)?;
            if fs::metadata(path).is_ok_and(|there| (there.ino(), there.dev()) == (ours.ino(), ours.dev())) {
                // Only for people who look for the holder; the lock does not depend on it.
                let _ = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{holder}, process {}", std::process::id()));
                return Ok(Self { file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nobody holds it any more.
        let _ = self.file.set_len(0);
    }
}

fn open(path: &Path) -> io::Result<File> {
    let new = !path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        // A link planted here would make this process write to another file.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a plain file, so it is not locked; remove it"));
    }
    if found.mode() & 0o077 != 0 {
        // Only its owner can close it to others.
        let _ = file.set_permissions(Permissions::from_mode(MODE));
    }
    if new {
        belong_to_folder(&file, path);
    }
    Ok(file)
}

/// Who wrote its name into the file.
fn told(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(200).read_to_string(&mut text));
    match read {
        Ok(_) if !text.trim().is_empty() => Excerpt { text: text.trim(), max_chars: 120 }.to_string(),
        _ => "somebody who gave no name".into(),
    }
}
