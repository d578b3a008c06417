//! The sessions that servers handed out, on disk: a line for each, appended when it is issued. Everything here blocks.
//!
//! Two processes of a node append to the file during an upgrade, and read what the other one appended. It is not synced: it is
//! for restarts of this process, and a host that lost its power has lost its callers' sessions as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mesh_shared::{NodeName, atomic_file};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags, flock};

use super::issued::Key;

const FILE_NAME: &str = "sessions";
/// Above this size, in bytes, the older half is dropped: twice what fits into memory, at 40 bytes a session.
const MOST_BYTES: u64 = 800_000;

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    read: Mutex<Position>,
}

/// How far it was read.
#[derive(Debug, Default, Clone, Copy)]
struct Position {
    inode: u64,
    bytes: u64,
}

impl Journal {
    /// The file in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE_NAME), read: Mutex::default() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a session.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn append(&self, session: Key, node: &NodeName) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Held while the file may be replaced; ends with the descriptor.
        let folder = File::open(folder)?;
        flock(&folder, FlockOperation::LockExclusive)?;
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&self.path)?;
        file.write_all(format!("{session} {node}\n").as_bytes())?;
        if file.metadata()?.len() > MOST_BYTES {
            self.drop_older_half()?;
        }
        Ok(())
    }

    /// Reads what was added since the last call, oldest first.
    ///
    /// # Errors
    /// The file cannot be read. No file is none.
    pub fn news(&self, mut take: impl FnMut(Key, NodeName)) -> io::Result<()> {
        let mut read = self.read.lock();
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let (inode, length) = file.metadata().map(|file| (file.ino(), file.len()))?;
        let from = if read.inode == inode && read.bytes <= length { read.bytes } else { 0 };
        if from == length {
            return Ok(());
        }
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.take(2 * MOST_BYTES).read_to_end(&mut text)?;
        // A line that is just being written is read next time.
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        for line in text.split(|byte| *byte == b'\n') {
            if let Some((key, node)) = parse(line) {
                take(key, node);
            }
        }
        *read = Position { inode, bytes: from + text.len() as u64 };
        Ok(())
    }

    fn drop_older_half(&self) -> io::Result<()> {
        let text = fs::read(&self.path)?;
        let half = &text[text.len() / 2..];
        let begin = half.iter().position(|byte| *byte == b'\n').map_or(half.len(), |end| end + 1);
        atomic_file::replace(&self.path, &std::process::id().to_string(), &half[begin..], 0o600)
    }
}

/// A line; `None` if it is none of ours.
fn parse(line: &[u8]) -> Option<(Key, NodeName)> {
    let (key, node) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    Some((key.parse().ok()?, node.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(i: u32) -> Key {
        Key::new(&"grok".parse().unwrap(), &i.to_be_bytes())
    }

    fn news(journal: &Journal) -> Vec<Key> {
        let mut keys = Vec::new();
        journal.news(|key, _| keys.push(key)).unwrap();
        keys
    }

    #[test]
    fn each_process_reads_what_both_wrote_and_the_file_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        let (one, other) = (Journal::new(&below), Journal::new(&below));
        let node: NodeName = "ct111".parse().unwrap();
        assert_eq!(news(&one), []);
        one.append(key(1), &node).unwrap();
        other.append(key(2), &node).unwrap();
        assert_eq!(news(&one), [key(1), key(2)]);
        assert_eq!(news(&one), []);
        OpenOptions::new().append(true).open(one.path()).unwrap().write_all(b"\xff\nno key\n12 ct9").unwrap();
        assert_eq!(news(&one), []);
        other.append(key(3), &node).unwrap();
        assert_eq!(news(&one), [], "it stands in the line that was not finished");
        let most = 2 * MOST_BYTES / 39;
        for i in 0..most as u32 {
            one.append(key(i), &node).unwrap();
        }
        assert!(fs::metadata(one.path()).unwrap().len() <= MOST_BYTES);
        let kept = news(&other);
        assert!(kept.len() > 10_000 && kept.last() == Some(&key(most as u32 - 1)), "{}", kept.len());
    }
}
