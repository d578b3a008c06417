//! The one way to write a file that others read: complete under a name of its own, synced, then put in place at once.
//!
//! Readers see the old content or the new one, never half of either, and a crash leaves one of the two. The temporary
//! file is always a new one of this process: a link or file that somebody planted under its name is removed, not
//! followed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// How often a name that somebody takes again and again is tried.
const TRIES: u32 = 8;

/// Content that is complete and on disk, but not in place yet. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
    in_place: bool,
}

impl Draft {
    /// Writes `content` beside `target`. `writer` tells this process's temporary file from those of others that may
    /// write the same target at the same time; what an earlier process of that name left behind is removed.
    ///
    /// Until it is opened to others (see [`Self::set_mode`]), only its owner can read it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(target: &Path, writer: &str, content: &[u8]) -> io::Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let temporary = target.with_file_name(format!(".{name}.{writer}.tmp"));
        let mut tries = 0;
        let file = loop {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Exclusive: never follows a link.
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
                opened => break opened?,
            }
        };
        let mut draft = Self { target: target.into(), temporary, file, in_place: false };
        draft.file.write_all(content)?;
        draft.file.sync_all()?;
        Ok(draft)
    }

    /// Sets who may use the file.
    ///
    /// # Errors
    /// A file system without modes may refuse.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))?;
        self.file.sync_all()
    }

    /// Gives the file to a user and a group.
    ///
    /// # Errors
    /// This user may not.
    pub fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        fchown(&self.file, Some(uid), Some(gid))
    }

    /// Gives the file the owner and group of the one that it replaces, as far as this user may: root the owner, others
    /// a group of their own. A key that was handed to another user stays readable for that user.
    pub fn keep_owner(&self) {
        keep_owner(&self.file, &self.target);
    }

    /// Puts the file in place of whatever has that name.
    ///
    /// # Errors
    /// The folder cannot be written, or somebody removed the draft.
    pub fn replace(mut self) -> io::Result<()> {
        self.still_ours()?;
        fs::rename(&self.temporary, &self.target)?;
        self.in_place = true;
        sync_folder(&self.target)
    }

    /// Puts the file in place where nothing has that name.
    ///
    /// # Errors
    /// `AlreadyExists`; the folder cannot be written.
    pub fn create(mut self) -> io::Result<()> {
        self.still_ours()?;
        match renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => self.in_place = true,
            // A file system without that: a second name, which fails where there is one. The first is removed on drop.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::hard_link(&self.temporary, &self.target)?,
            Err(error) => return Err(error.into()),
        }
        sync_folder(&self.target)
    }

    fn still_ours(&self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::symlink_metadata(&self.temporary)?);
        match (ours.ino(), ours.dev()) == (there.ino(), there.dev()) {
            true => Ok(()),
            false => Err(io::Error::other("another program replaced the temporary file")),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.in_place && self.still_ours().is_ok() {
            // Left behind, it is removed by the next write.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a file in place of another one, with this mode.
///
/// # Errors
/// The folder cannot be written.
pub fn replace(target: &Path, writer: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let draft = Draft::write(target, writer, content)?;
    draft.set_mode(mode)?;
    draft.replace()
}

/// Gives `new` the owner and group of `old`, as far as this user may.
pub fn keep_owner(new: &File, old: &Path) {
    if let Ok(old) = fs::symlink_metadata(old).and_then(|found| match found.is_symlink() {
        true => fs::metadata(old),
        false => Ok(found),
    }) {
        let _ = fchown(new, Some(old.uid()), Some(old.gid())).or_else(|_| fchown(new, None, Some(old.gid())));
    }
}

/// Makes the names in a file's folder durable. File systems that cannot sync a folder (SMB, some FUSE) keep names in
/// their own way; that is not an error.
///
/// # Errors
/// The folder cannot be opened, or its disk fails.
pub fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        Err(error) if is_unsupported(&error) => Ok(()),
        outcome => outcome,
    }
}

/// Whether a file system says that it does not know such a thing, rather than that it failed.
pub fn is_unsupported(error: &io::Error) -> bool {
    let known = [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP];
    error.raw_os_error().is_some_and(|code| known.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_link_is_not_followed() {
        let folder = std::env::temp_dir().join(format!("mesh-atomic-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (target, victim) = (folder.join("f"), folder.join("victim"));
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, folder.join(".f.w.tmp")).unwrap();
        replace(&target, "w", b"new", 0o640).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(target.metadata().unwrap().mode() & 0o777, 0o640);
        let again = Draft::write(&target, "w", b"other").unwrap().create();
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}
