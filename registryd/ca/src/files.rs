//! Files that appear whole, with their final mode, or not at all.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file::{self, Draft};

use crate::error::CaError;

/// Marks the temporary files of this crate, with the process behind it.
pub(crate) const WRITER: &str = "meshctl-";

/// Writes a file that must not exist yet.
///
/// # Errors
/// It exists, or the folder cannot be written.
pub(crate) fn write_new(path: &Path, content: &str, mode: u32) -> Result<(), CaError> {
    complete(path, content, mode)?.create().map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => CaError::Exists { path: path.into(), hint: "" },
        _ => CaError::File { what: "write", path: path.into(), source },
    })
}

/// Writes a file in place of another one; readers see the one or the other.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn replace(path: &Path, content: &str, mode: u32) -> Result<(), CaError> {
    let draft = complete(path, content, mode)?;
    draft.keep_owner();
    draft.replace().map_err(|source| CaError::File { what: "replace", path: path.into(), source })
}

/// Gives a complete file the name of another one, which goes.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), CaError> {
    let fail = |source| CaError::File { what: "replace", path: to.into(), source };
    atomic_file::keep_owner(&File::open(from).map_err(fail)?, to);
    std::fs::rename(from, to).and_then(|()| atomic_file::sync_folder(to)).map_err(fail)
}

/// A file's text; anything in it that is not UTF-8 is outside the PEM blocks.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: &Path) -> Result<String, CaError> {
    let bytes =
        std::fs::read(path).map_err(|source| CaError::File { what: "read", path: path.into(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes a file; one that is gone already is not an error.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn remove(path: &Path) -> Result<(), CaError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(CaError::File { what: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// What is in a folder, by name; nothing where there is none.
///
/// # Errors
/// It cannot be read.
pub(crate) fn listed(folder: &Path) -> Result<Vec<PathBuf>, CaError> {
    let fail = |source| CaError::File { what: "read the folder", path: folder.into(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(fail)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Makes a folder and those above it; one that exists stays as it is. It belongs to the owner of the folder around it.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), CaError> {
    let new = !path.exists();
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| CaError::File {
        what: "make the folder",
        path: path.into(),
        source,
    })?;
    if new && let Ok(folder) = File::open(path) {
        belong_to_folder(&folder, path);
    }
    Ok(())
}

/// Gives a new file to the owner of its folder, as far as this user may: made by root in the folder of the CA's own user, it must
/// not lock that one out.
pub(crate) fn belong_to_folder(file: &File, path: &Path) {
    if let Some(Ok(folder)) = path.parent().map(std::fs::metadata) {
        let _ = fchown(file, Some(folder.uid()), Some(folder.gid()));
    }
}

/// A complete, synced file beside `path`. Until its mode is set at the end, it is readable by its owner alone.
fn complete(path: &Path, content: &str, mode: u32) -> Result<Draft, CaError> {
    let write = || {
        let draft = Draft::write(path, &format!("{WRITER}{}", std::process::id()), content.as_bytes())?;
        draft.set_mode(mode)?;
        Ok(draft)
    };
    write().map_err(|source| CaError::File { what: "write", path: path.into(), source })
}

/// The path from the root of the file system, links in it followed as far as it exists.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, CaError> {
    // Links in the part that exists already must not hide that one folder is inside the other.
    let path = std::path::absolute(path).map_err(|source| CaError::File {
        what: "find",
        path: path.into(),
        source,
    })?;
    let known = path.ancestors().find_map(|known| Some((known, known.canonicalize().ok()?)));
    Ok(match known {
        Some((known, real)) => real.join(path.strip_prefix(known).unwrap_or(Path::new(""))),
        None => path,
    })
}
