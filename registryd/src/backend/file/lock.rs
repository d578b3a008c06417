//! The exclusive lock next to the registry file, with a limit on waiting and a word on who holds it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use mesh_shared::NodeName;
use mesh_shared::logging::Excerpt;
use serde_json::json;

/// How long to wait for another holder.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// Whoever may open the file may hold it: the owner and the group.
const MODE: u32 = 0o660;
/// The pauses between attempts, growing from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LockError {
    #[error(
        "{} has been locked by another process for {waited_s} s; {holder}. The heartbeat is tried again; \
         if the holder hangs, end it",
        path.display()
    )]
    Busy { path: PathBuf, waited_s: u64, holder: String },
    #[error("{} is not a plain file, so it is neither locked nor followed; remove it", .0.display())]
    Link(PathBuf),
    #[error("cannot lock {}: {source}{}", path.display(), super::advice(source))]
    Io { path: PathBuf, source: io::Error },
}

/// The lock file of one registry.
#[derive(Debug, Clone)]
pub(super) struct Lock {
    path: PathBuf,
    /// Written into the file while it is held, for those who wait.
    holder: String,
}

/// Holds the lock until dropped.
pub(super) struct Held {
    _file: File,
}

impl Lock {
    pub(super) fn new(path: PathBuf, node: &NodeName) -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder = json!({"node": node.as_str(), "host": host.trim(), "pid": std::process::id()});
        Self { path, holder: format!("{holder}\n") }
    }

    pub(super) fn acquire(&self) -> Result<Held, LockError> {
        let failed = |source| LockError::Io { path: self.path.clone(), source };
        let started = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(MODE)
                // A link planted here would make this process write, and give away, another file.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(&self.path)
                .map_err(|source| match source.raw_os_error() {
                    Some(libc::ELOOP) => LockError::Link(self.path.clone()),
                    _ => failed(source),
                })?;
            let found = file.metadata().map_err(failed)?;
            if !found.is_file() {
                return Err(LockError::Link(self.path.clone()));
            }
            if found.mode() & 0o007 != 0 {
                // Whoever may open it may hold it. Only its owner can close it to others; a file of somebody else's
                // is theirs to fix.
                let _ = file.set_permissions(fs::Permissions::from_mode(found.mode() & 0o770));
            }
            loop {
                match FileExt::try_lock(&file) {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) if started.elapsed() < WAIT_LIMIT => {
                        std::thread::sleep(jittered(pause));
                        pause = (pause * 2).min(PAUSES.1);
                    }
                    Err(TryLockError::WouldBlock) => {
                        let waited_s = started.elapsed().as_secs();
                        return Err(LockError::Busy {
                            path: self.path.clone(),
                            waited_s,
                            holder: holder_of(&mut file),
                        });
                    }
                    Err(TryLockError::Error(source)) => return Err(failed(source)),
                }
            }
            // Whoever removes the file makes others lock a new one: the lock counts only on the file that is there.
            let ours = file.metadata().map_err(failed)?;
            if fs::metadata(&self.path)
                .is_ok_and(|there| (there.ino(), there.dev()) == (ours.ino(), ours.dev()))
            {
                // Only for people who look for the holder; the lock does not depend on it.
                let _ = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| file.write_all(self.holder.as_bytes()));
                return Ok(Held { _file: file });
            }
        }
    }
}

/// Who holds the lock, as far as it can be told: the kernel knows processes of this host, the file's text others.
fn holder_of(file: &mut File) -> String {
    let here = local_holder(file).map_or_else(String::new, |pid| {
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let program = Excerpt { text: program.trim(), max_chars: 40 }.to_string();
        match program.as_str() {
            "" => format!("process {pid} of this host holds it; "),
            program => format!("process {pid} of this host ({program}) holds it; "),
        }
    });
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(1000).read_to_string(&mut text));
    let said = |holder: &serde_json::Value, key: &str| {
        let said = match &holder[key] {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Number(number) => number.to_string(),
            _ => "?".into(),
        };
        Excerpt { text: &said, max_chars: 80 }.to_string()
    };
    match (read, serde_json::from_str::<serde_json::Value>(text.trim())) {
        (Ok(_), Ok(holder)) => format!(
            "{here}the last holder that gave its name is node {} (process {} on host {})",
            said(&holder, "node"),
            said(&holder, "pid"),
            said(&holder, "host"),
        ),
        _ => format!("{here}no holder gave its name, so it is another program"),
    }
}

/// The process of this host that holds a lock on the file, from /proc/locks: lines such as
/// `1: FLOCK ADVISORY WRITE 4711 fd:01:2883 0 EOF`.
fn local_holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let inode = found.ino().to_string();
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (pid, place) = (words.get(4)?, words.get(5)?);
        let here = !line.contains("->") && place.rsplit(':').next() == Some(inode.as_str());
        here.then(|| pid.parse().ok()).flatten()
    })
}

/// Between half of `pause` and all of it, so that many waiting nodes do not try in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + crate::jitter::unit() / 2.0)
}
