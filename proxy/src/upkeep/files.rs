//! A certificate and its key as files that are replaced together.
//!
//! Each pair is in a folder of its own, a generation, and a link leads to the current one. Swapping the link replaces
//! both at once. Files that lie by themselves become links to such a pair when they are replaced for the first time.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file::{self, Draft};
use mesh_shared::config::Config;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

/// How many generations may begin in one second.
const TRIES: u32 = 100;

/// Why files cannot be replaced.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum FilesError {
    #[error("{} and {} lie in different folders, so they cannot be replaced together", certificate.display(), key.display())]
    Apart { certificate: PathBuf, key: PathBuf },
    #[error("{} is a link to another place, so whoever made the link must replace it", path.display())]
    Foreign { path: PathBuf },
    #[error("{} cannot be written by this user ({source}), so its certificate is not renewed here", folder.display())]
    ReadOnly { folder: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// The files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct LeafFiles {
    certificate: PathBuf,
    key: PathBuf,
}

/// Where the generations of a pair are.
struct Place {
    folder: PathBuf,
    /// What the name of each generation begins with.
    prefix: String,
    /// The link to the current one.
    link: PathBuf,
    /// Whether the files are reached by the link already.
    linked: bool,
}

/// What is written while the daemon runs, as far as certificates are renewed here.
pub fn folders(config: &Config) -> Vec<PathBuf> {
    let tls = &config.mesh.tls;
    if config.mesh.ca_node.is_none() {
        return Vec::new();
    }
    let place = LeafFiles::new(&tls.cert_path, &tls.key_path).place().map(|place| place.folder);
    let bundle = tls.ca_path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
    place.into_iter().chain(bundle).filter(|folder| is_writable(folder).is_ok()).collect()
}

fn is_writable(folder: &Path) -> io::Result<()> {
    accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS).map_err(io::Error::from)
}

impl LeafFiles {
    /// These two.
    pub fn new(certificate: &Path, key: &Path) -> Self {
        Self { certificate: certificate.into(), key: key.into() }
    }

    fn place(&self) -> Result<Place, FilesError> {
        let apart = || FilesError::Apart { certificate: self.certificate.clone(), key: self.key.clone() };
        let (Some(folder), true) =
            (self.certificate.parent(), self.certificate.parent() == self.key.parent())
        else {
            return Err(apart());
        };
        let name = |path: &Path| path.file_name().map(PathBuf::from).ok_or_else(apart);
        let (certificate, key) = (name(&self.certificate)?, name(&self.key)?);
        if let (Ok(target), Some(above)) = (fs::read_link(folder), folder.parent())
            && target.to_str().is_some_and(|target| Generation::parse(target, "").is_some())
        {
            let (folder, link) = (above.to_owned(), folder.to_owned());
            return Ok(Place { folder, prefix: String::new(), link, linked: true });
        }
        let stem = self.certificate.file_stem().unwrap_or_default().to_string_lossy();
        let current = format!("{stem}.current");
        let mut linked = 0;
        for (path, name) in [(&self.certificate, &certificate), (&self.key, &key)] {
            match fs::read_link(path) {
                Ok(target) if target == Path::new(&current).join(name) => linked += 1,
                Ok(_) => return Err(FilesError::Foreign { path: path.clone() }),
                Err(_) => {}
            }
        }
        Ok(Place {
            folder: folder.into(),
            prefix: format!("{stem}."),
            link: folder.join(current),
            linked: linked == 2,
        })
    }

    /// Whether they can be replaced.
    ///
    /// # Errors
    /// They cannot.
    pub fn are_ours(&self) -> Result<(), FilesError> {
        let folder = self.place()?.folder;
        is_writable(&folder).map_err(|source| FilesError::ReadOnly { folder, source })
    }

    /// Replaces both, on disk when this returns. The pair of before stays where it is.
    ///
    /// # Errors
    /// The folder cannot be written; those of before are still in place.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), FilesError> {
        let place = self.place()?;
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| FilesError::Write { path, source }
        };
        if !place.linked {
            // With the same content at each step, so that whoever reads meanwhile finds a pair that fits.
            let read = |path: &Path| fs::read_to_string(path).map(Zeroizing::new).map_err(fail(path));
            let first = self.write(&place, &read(&self.certificate)?, &read(&self.key)?)?;
            swap(&place.link, Path::new(&first)).map_err(fail(&place.link))?;
            let current = place.link.file_name().map(PathBuf::from).unwrap_or_default();
            for path in [&self.certificate, &self.key] {
                let target = current.join(path.file_name().unwrap_or_default());
                swap(path, &target).map_err(fail(path))?;
            }
            tracing::info!(
                target: "Mesh",
                "{} and its key are now links to the pair in use below {}",
                self.certificate.display(),
                place.folder.display()
            );
        }
        let fresh = self.write(&place, certificate, key)?;
        swap(&place.link, Path::new(&fresh)).map_err(fail(&place.link))
    }

    /// Writes a generation and returns its name.
    fn write(&self, place: &Place, certificate: &str, key: &str) -> Result<String, FilesError> {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        // Its parts are all there.
        let now = OffsetDateTime::now_utc().format(format).unwrap_or_default();
        let mut number = 1;
        let (name, folder) = loop {
            let name = format!("{}{now}-{number}", place.prefix);
            let folder = place.folder.join(&name);
            match DirBuilder::new().mode(0o750).create(&folder) {
                Ok(()) => break (name, folder),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < TRIES => number += 1,
                Err(source) => return Err(FilesError::Write { path: folder, source }),
            }
        };
        let written = || {
            // Whatever the umask: registryd reads the certificate as a member of the group.
            fs::set_permissions(&folder, Permissions::from_mode(0o750))?;
            for (path, content, mode) in [(&self.certificate, certificate, 0o644), (&self.key, key, 0o600)] {
                let path = folder.join(path.file_name().unwrap_or_default());
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                file.write_all(content.as_bytes())?;
                file.set_permissions(Permissions::from_mode(mode))?;
                file.sync_all()?;
            }
            File::open(&folder)?.sync_all()?;
            atomic_file::sync_folder(&folder)
        };
        match written() {
            Ok(()) => Ok(name),
            Err(source) => {
                self.remove(&folder);
                Err(FilesError::Write { path: folder, source })
            }
        }
    }

    /// Removes all generations but the current one and the last before it.
    pub fn tidy(&self) {
        let Ok(place) = self.place() else { return };
        let Ok(entries) = fs::read_dir(&place.folder) else { return };
        let current = fs::read_link(&place.link).ok();
        let mut others: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| current.as_deref() != Some(Path::new(name)))
            .filter_map(|name| Some((Generation::parse(&name, &place.prefix)?, name)))
            .collect();
        others.sort();
        others.pop();
        for (_, name) in others {
            self.remove(&place.folder.join(name));
        }
    }

    /// Removes a generation, and nothing else that somebody may have put there.
    fn remove(&self, folder: &Path) {
        for path in [&self.certificate, &self.key] {
            // What is not there needs no removing.
            let _ = fs::remove_file(folder.join(path.file_name().unwrap_or_default()));
        }
        if let Err(error) = fs::remove_dir(folder) {
            tracing::warn!(target: "Mesh", "cannot remove {}: {error}", folder.display());
        }
    }
}

/// When a generation was written, and which one of that second it is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Generation(String, u32);

impl Generation {
    /// Reads `<prefix>20261127T193000Z-1`.
    fn parse(name: &str, prefix: &str) -> Option<Self> {
        let (time, number) = name.strip_prefix(prefix)?.split_once("Z-")?;
        let (date, clock) = time.split_once('T')?;
        let digits =
            |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(date, 8) && digits(clock, 6)).then(|| Some(Self(time.into(), number.parse().ok()?)))?
    }
}

/// Makes `link` lead to `target`, whatever it was before.
fn swap(link: &Path, target: &Path) -> io::Result<()> {
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let temporary = link.with_file_name(format!(".{name}.mesh-proxy.tmp"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(target, &temporary)?,
    }
    fs::rename(&temporary, link)?;
    atomic_file::sync_folder(link)
}

/// Replaces the trust bundle where it is, through links, with the owner and the mode of before.
///
/// # Errors
/// It cannot be written.
pub fn replace_bundle(path: &Path, content: &str) -> Result<(), FilesError> {
    let written = || {
        let path = path.canonicalize()?;
        let draft = Draft::write(&path, "mesh-proxy", content.as_bytes())?;
        draft.keep_owner();
        draft.set_mode(path.metadata()?.permissions().mode() & 0o777)?;
        draft.replace()
    };
    written().map_err(|source| FilesError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(files: &LeafFiles) -> (String, String) {
        (fs::read_to_string(&files.certificate).unwrap(), fs::read_to_string(&files.key).unwrap())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_pair_is_replaced_by_its_link_and_the_last_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("20261127T193000Z-1");
        fs::create_dir(&first).unwrap();
        symlink("20261127T193000Z-1", folder.path().join("current")).unwrap();
        let files =
            LeafFiles::new(&folder.path().join("current/node.crt"), &folder.path().join("current/node.key"));
        for file in ["node.crt", "node.key"] {
            fs::write(first.join(file), "old").unwrap();
        }
        files.are_ours().unwrap();
        for new in ["a", "b", "c"] {
            files.replace(new, new).unwrap();
            assert_eq!(pair(&files), (new.into(), new.into()));
        }
        assert_eq!(names(folder.path()).len(), 5, "nothing is removed yet");
        files.tidy();
        assert_eq!(names(folder.path()).len(), 3);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.key), mode(&files.certificate)), (0o600, 0o644));
        assert_eq!(mode(&folder.path().join("current")), 0o750);
        assert_eq!(pair(&files).0, "c");
    }

    #[test]
    fn files_that_lie_by_themselves_become_links() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("opus@ct110.crt"), folder.path().join("opus@ct110.key"));
        fs::write(&certificate, "old").unwrap();
        fs::write(&key, "old").unwrap();
        let files = LeafFiles::new(&certificate, &key);
        files.replace("new", "new").unwrap();
        assert_eq!(pair(&files), ("new".into(), "new".into()));
        files.replace("newer", "newer").unwrap();
        files.tidy();
        assert_eq!(pair(&files), ("newer".into(), "newer".into()));
        // The two files, the link, the current pair and the last one.
        assert_eq!(names(folder.path()).len(), 5, "{:?}", names(folder.path()));
        fs::remove_file(&key).unwrap();
        symlink("..data/key", &key).unwrap();
        assert!(matches!(files.are_ours(), Err(FilesError::Foreign { .. })));
    }
}
