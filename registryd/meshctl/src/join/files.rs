//! The files of a node that joined, below `<state>/tls/`:
//!
//! ```text
//! ca-chain.pem, crl.pem                what it trusts, and what is revoked
//! current -> 20261127T193000Z-1        swapped at once, here and by each renewal
//! <generation>/node.crt, node.key      a certificate and its key (0600)
//! joined.json                          what the CA answered, so that a repeated join continues
//! joining/                             a key and its request, until their certificate is there
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use mesh_ca::{KeyType, NewRequest};
use mesh_enrolment::Token;
use mesh_shared::atomic_file::{Draft, sync_folder};
use mesh_shared::config::TlsFiles;
use mesh_shared::enrolment::Enrolled;
use mesh_shared::pem::{self, Block};
use nix::unistd::{Group, Uid, User};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::digest_of;
use crate::Failure;

/// Whose the files are.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// mesh-proxy's user and the daemons' group; `None` where this is not run by root, whose files stay its own.
    ///
    /// # Errors
    /// They do not exist: the programs were not installed with their users.
    pub fn of(user: &str, group: &str) -> Result<Option<Self>, Failure> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let missing = |what: &str, name: &str| {
            Failure::Said(format!(
                "there is no {what} {name} on this host; install the programs with their users first (deploy/install.sh or \
                 the package), or name another --{what}"
            ))
        };
        let uid = User::from_name(user).ok().flatten().ok_or_else(|| missing("user", user))?.uid.as_raw();
        let gid = Group::from_name(group).ok().flatten().ok_or_else(|| missing("group", group))?.gid.as_raw();
        Ok(Some(Self { uid, gid }))
    }

    fn give(owner: Option<Self>, path: &Path) -> io::Result<()> {
        owner.map_or(Ok(()), |owner| chown(path, Some(owner.uid), Some(owner.gid)))
    }
}

/// A key of this host with the request that asks for its certificate.
pub struct Pending {
    /// PKCS#8, PEM.
    pub key: Zeroizing<String>,
    /// PKCS#10, PEM.
    pub csr: String,
}

impl Pending {
    /// Those of an earlier attempt with this token, else new ones, on disk when this returns.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn of(token: &Token, folder: &Path) -> Result<Self, Failure> {
        let digest = digest_of(token);
        let path = |kind: &str| folder.join(format!("{}.{kind}", &digest[..16]));
        let (key_path, csr_path) = (path("key"), path("csr"));
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot("read", path)(error)),
        };
        // The request is written last, so it has its key.
        if let (Some(key), Some(csr)) = (read(&key_path)?, read(&csr_path)?) {
            return Ok(Self { key, csr: csr.to_string() });
        }
        // Of other tokens, which are of no more use.
        remove_folder(folder)?;
        make_folder(folder, 0o700, None)?;
        let made = NewRequest::make(&token.identity, KeyType::default())?;
        write(&key_path, made.key_pem.as_bytes(), 0o600, None)?;
        write(&csr_path, made.request_pem.as_bytes(), 0o600, None)?;
        Ok(Self { key: made.key_pem, csr: made.request_pem })
    }

    /// Whether a certificate is for this key.
    pub fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(blocks) = pem::blocks(&self.key) else { return false };
        let Some(Ok(mut der)) = blocks.iter().find(|block| block.is_private_key()).map(Block::der) else {
            return false;
        };
        let key = Zeroizing::new(PrivateKeyDer::Pkcs8(std::mem::take(&mut *der).into()));
        any_supported_type(&key).is_ok_and(|key| {
            CertifiedKey::new(vec![certificate.clone().into_owned()], key).keys_match().is_ok()
        })
    }
}

/// The folder `tls/`.
pub struct Tls {
    state_dir: PathBuf,
    folder: PathBuf,
    owner: Option<Owner>,
}

/// What is known of a join that has its certificate.
#[derive(Serialize, Deserialize)]
struct Joined {
    /// SHA-256 of the token's secret.
    token: String,
    answer: Enrolled,
}

impl Tls {
    /// That of a state directory.
    pub fn below(state_dir: &Path, owner: Option<Owner>) -> Self {
        Self { state_dir: state_dir.into(), folder: state_dir.join("tls"), owner }
    }

    /// What goes into the configuration.
    pub fn paths(&self) -> TlsFiles {
        TlsFiles {
            ca_path: self.folder.join("ca-chain.pem"),
            cert_path: self.folder.join("current/node.crt"),
            key_path: self.folder.join("current/node.key"),
        }
    }

    /// Makes the folders. registryd, of the same group, reads the certificate and what is trusted, so it must get there.
    ///
    /// # Errors
    /// They cannot be made, for want of permission if this is not run by root.
    pub fn make(&self) -> Result<(), Failure> {
        make_folder(&self.state_dir, 0o750, self.owner)?;
        make_folder(&self.folder, 0o750, self.owner)
    }

    /// Where the key waits for its certificate.
    pub fn pending_folder(&self) -> PathBuf {
        self.folder.join("joining")
    }

    /// What the CA answered, if this host has its certificate by this token already.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn joined_with(&self, token: &Token) -> Result<Option<Enrolled>, Failure> {
        let path = self.joined_path();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(cannot("read", &path))?,
        };
        let joined: Option<Joined> = serde_json::from_slice(&text).ok();
        Ok(joined.filter(|joined| joined.token == digest_of(token)).map(|joined| joined.answer))
    }

    fn joined_path(&self) -> PathBuf {
        self.folder.join("joined.json")
    }

    /// Puts the answer in place: what is trusted, then certificate and key as one generation, then that it is done.
    ///
    /// # Errors
    /// A file cannot be written. The same call can be made again.
    pub fn take(&self, token: &Token, answer: &Enrolled, pending: &Pending) -> Result<(), Failure> {
        let paths = self.paths();
        write(&paths.ca_path, answer.chain.as_bytes(), 0o640, self.owner)?;
        if !answer.crl.is_empty() {
            write(&self.folder.join("crl.pem"), answer.crl.as_bytes(), 0o640, self.owner)?;
        }
        let generation = self.generation()?;
        let folder = self.folder.join(&generation);
        make_folder(&folder, 0o750, self.owner)?;
        write(&folder.join("node.key"), pending.key.as_bytes(), 0o600, self.owner)?;
        write(&folder.join("node.crt"), answer.certificate.as_bytes(), 0o640, self.owner)?;
        self.point_to(&generation)?;
        let joined = Joined { token: digest_of(token), answer: answer.clone() };
        let joined = serde_json::to_vec(&joined).map_err(|error| Failure::Said(error.to_string()))?;
        write(&self.joined_path(), &joined, 0o600, self.owner)
    }

    /// Removes the key that waited; its certificate is there.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn forget_pending(&self) -> Result<(), Failure> {
        remove_folder(&self.pending_folder())
    }

    /// A name that is not taken: the time, and a number.
    fn generation(&self) -> Result<String, Failure> {
        let form = format_description!("[year][month][day]T[hour][minute][second]Z");
        let time =
            OffsetDateTime::now_utc().format(&form).map_err(|error| Failure::Said(error.to_string()))?;
        let mut names = (1u32..).map(|number| format!("{time}-{number}"));
        let free = names.find(|name| fs::symlink_metadata(self.folder.join(name)).is_err());
        Ok(free.unwrap_or(time))
    }

    fn point_to(&self, generation: &str) -> Result<(), Failure> {
        let (current, fresh) = (self.folder.join("current"), self.folder.join(".current.join.tmp"));
        let point = || {
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(generation, &fresh)?;
            fs::rename(&fresh, &current)?;
            sync_folder(&current)
        };
        point().map_err(cannot("replace", &current))
    }
}

/// Writes a file at once, with this mode and owner.
///
/// # Errors
/// Its folder cannot be written.
pub fn write(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> Result<(), Failure> {
    let write = || {
        let draft = Draft::write(path, "join", content)?;
        if let Some(owner) = owner {
            draft.set_owner(owner.uid, owner.gid)?;
        }
        draft.set_mode(mode)?;
        draft.replace()
    };
    write().map_err(cannot("write", path))
}

/// Makes a folder with this mode and owner, or gives them to the one that is there.
fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), Failure> {
    let make = || {
        if !path.is_dir() {
            // Those above it are for everyone, or its owner would not get there.
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            DirBuilder::new().mode(mode).create(path)?;
        }
        Owner::give(owner, path)?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    };
    make().map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            Failure::Said(format!("cannot make the folder {}: {error}; run this with sudo", path.display()))
        }
        _ => cannot("make the folder", path)(error),
    })
}

/// Removes a folder with what is in it, if it is there.
///
/// # Errors
/// It cannot be removed.
pub fn remove_folder(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(cannot("remove", path)),
    }
}

/// What failed with which file.
pub fn cannot(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::Said(format!("cannot {what} {}: {error}", path.display()))
}
