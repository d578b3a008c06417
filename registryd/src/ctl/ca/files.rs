//! Files that appear whole, with their final mode, or not at all.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use tempfile::NamedTempFile;

use super::CaError;

/// Writes a file that must not exist yet.
///
/// # Errors
/// It exists, or the folder cannot be written.
pub(super) fn write_new(path: &Path, content: &str, mode: u32) -> Result<(), CaError> {
    let file = complete(path, content, mode)?;
    file.persist_noclobber(path).map_err(|error| match error.error.kind() {
        ErrorKind::AlreadyExists => CaError::Exists { path: path.into(), hint: "" },
        _ => CaError::File { what: "write", path: path.into(), source: error.error },
    })?;
    sync_folder(path)
}

/// Writes a file in place of another one; readers see the one or the other.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn replace(path: &Path, content: &str, mode: u32) -> Result<(), CaError> {
    let file = complete(path, content, mode)?;
    keep_owner(file.as_file(), path);
    file.persist(path).map_err(|error| CaError::File {
        what: "replace",
        path: path.into(),
        source: error.error,
    })?;
    sync_folder(path)
}

/// Gives a complete file the name of another one, which goes.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), CaError> {
    let fail = |source| CaError::File { what: "replace", path: to.into(), source };
    keep_owner(&File::open(from).map_err(fail)?, to);
    std::fs::rename(from, to).map_err(fail)?;
    sync_folder(to)
}

/// A key handed to another user (chown) must stay readable for that user.
fn keep_owner(new: &File, old: &Path) {
    if let Ok(old) = old.metadata() {
        let _ = fchown(new, Some(old.uid()), Some(old.gid()));
    }
}

/// A file's text; what is no UTF-8 in it lies outside the PEM blocks.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(path: &Path) -> Result<String, CaError> {
    let bytes =
        std::fs::read(path).map_err(|source| CaError::File { what: "read", path: path.into(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The PEM blocks with this label, each with its lines and a final newline.
pub(super) fn pem_blocks(text: &str, label: &str) -> Vec<String> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let blocks = text.match_indices(&begin).filter_map(|(from, _)| {
        let length = text[from..].find(&end)? + end.len();
        Some(format!("{}\n", &text[from..from + length]))
    });
    blocks.collect()
}

/// Waits for the only lock on a file, which is made if need be; it ends with the returned value.
///
/// # Errors
/// The file cannot be made or locked.
pub(super) fn lock(path: &Path) -> Result<File, CaError> {
    let open = || {
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        file.lock().map(|()| file)
    };
    open().map_err(|source| CaError::File { what: "lock", path: path.into(), source })
}

/// Makes a folder and those above it; one that exists stays as it is.
///
/// # Errors
/// It cannot be made.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), CaError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| CaError::File {
        what: "make the folder",
        path: path.into(),
        source,
    })
}

/// A complete, synced file beside `path` under a name that goes away with it. Until its mode is set at the
/// end, it is readable by its owner alone.
fn complete(path: &Path, content: &str, mode: u32) -> Result<NamedTempFile, CaError> {
    let fail = |source| CaError::File { what: "write", path: path.into(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".meshctl-").tempfile_in(folder).map_err(fail)?;
    file.write_all(content.as_bytes()).map_err(fail)?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    Ok(file)
}

fn sync_folder(path: &Path) -> Result<(), CaError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| CaError::File {
        what: "sync the folder",
        path: folder.into(),
        source,
    })
}
