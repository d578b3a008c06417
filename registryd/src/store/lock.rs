//! The exclusive lock beside the registry file, with a limit on waiting and a word on who holds it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use mesh_shared::NodeName;
use serde_json::json;

/// How long to wait for another holder.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// The pauses between attempts, growing from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LockError {
    #[error(
        "{} has been locked by somebody else for {waited_s} s; {holder}. The heartbeat is tried again; \
         if the holder hangs, end it",
        path.display()
    )]
    Busy { path: PathBuf, waited_s: u64, holder: String },
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
                .mode(0o664)
                .open(&self.path)
                .map_err(failed)?;
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

fn holder_of(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(1000).read_to_string(&mut text));
    match (read, serde_json::from_str::<serde_json::Value>(text.trim())) {
        (Ok(_), Ok(holder)) => format!(
            "the last holder that gave its name is node {} (process {} on host {})",
            holder["node"].as_str().unwrap_or("?"),
            holder["pid"],
            holder["host"].as_str().unwrap_or("?"),
        ),
        _ => "no holder gave its name, so it is another program".into(),
    }
}

/// Between half of `pause` and all of it, so that many waiting nodes do not try in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + crate::jitter::unit() / 2.0)
}
