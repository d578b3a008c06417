//! Invitations, a file each in `<ca>/invites/`, which only the CA's user can read.
//!
//! A file is named by, and holds, the secret's SHA-256; the secret itself is nowhere but in the token. It is marked as
//! used, on disk, before anything is issued: a crash in between may waste an invitation, but never leads to two certificates.
//! Only the same key may ask again while the invitation is valid, since its answer may have been lost.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use mesh_ca::{Digest, hex};
use mesh_shared::atomic_file;
use mesh_shared::enrolment::DEFAULT_PORT;
use mesh_shared::identity::Identity;
use mesh_shared::name::AgentName;
use serde::{Deserialize, Serialize};

use crate::token::{Address, Secret};

/// Most invitations that are open at once.
const MOST_OPEN: usize = 256;
/// How long after its end an invitation is kept, so that the log can tell late and repeated attempts from guesses.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Bytes of the digest that name a file.
const ID_BYTES: usize = 8;
/// In the invitations' folder: where the CA's process is found, an address a line.
const ADDRESSES: &str = "addresses";
/// The longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What an invitation allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// For whom.
    pub identity: Identity,
    /// Host names and addresses beside `<node>.mesh`.
    pub alternative_names: Vec<String>,
    /// Agents that the node may host.
    pub agents: Vec<AgentName>,
    /// Validity of the certificate, in days.
    pub days: u32,
}

/// An invitation as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    /// SHA-256 of the secret, in hexadecimal.
    secret: String,
    identity: String,
    alternative_names: Vec<String>,
    agents: Vec<AgentName>,
    days: u32,
    /// Epoch seconds.
    made: u64,
    /// Epoch seconds; it is valid before.
    ends: u64,
    used: Option<Use>,
}

/// By whom an invitation was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Use {
    /// Epoch seconds.
    pub at: u64,
    /// The address that asked.
    pub from: String,
    /// SHA-256 of the public key, in hexadecimal.
    pub key: String,
}

/// Why invitations cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum InvitesError {
    #[error("cannot {what} {}: {source}{}", path.display(), advice(source))]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: is not an invitation of this version ({reason}); remove it", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error("{MOST_OPEN} invitations are open already; wait until some have ended, or remove files in {}", .0.display())]
    TooMany(PathBuf),
    #[error("the operating system provides no random numbers")]
    Random,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "; use sudo, or be the user that owns the CA's folder",
        _ => "",
    }
}

/// Why an invitation lets nobody in. For the CA's log alone: whoever asks is told nothing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum Rejection {
    #[error("there is no such invitation: the secret is wrong, or its invitation ended long ago")]
    Unknown,
    #[error("invitation {id} for {identity} has ended")]
    Ended { id: String, identity: String },
    #[error("invitation {id} is for {identity}, but the request is for {asked}")]
    OtherName { id: String, identity: String, asked: Identity },
    #[error(
        "the token was stolen, or used twice: invitation {id} for {identity} was used from {} with another key. If the \
         wrong host was first, `meshctl ca revoke {identity}`", used.from
    )]
    OtherKey { id: String, identity: String, used: Use },
    #[error(transparent)]
    Store(#[from] InvitesError),
}

/// An invitation that counts.
#[derive(Debug)]
pub struct Claim {
    /// How the log names it.
    pub id: String,
    /// What it allows.
    pub offer: Offer,
    /// Whether this key had used it before.
    pub again: bool,
}

/// The invitations of a CA.
#[derive(Debug, Clone)]
pub struct Invites {
    folder: PathBuf,
}

impl Invites {
    /// Those of the CA in `dir`. Touches nothing.
    pub fn of_ca(dir: &Path) -> Self {
        Self { folder: dir.join("invites") }
    }

    /// Makes an invitation that ends after `ttl`. Gives its secret, which is kept nowhere, and its name in the log.
    ///
    /// # Errors
    /// The folder cannot be written, or too many are open.
    pub fn create(&self, offer: &Offer, ttl: Duration, now: u64) -> Result<(Secret, String), InvitesError> {
        self.make_folder()?;
        let _lock = self.lock()?;
        if self.sweep_locked(now)? >= MOST_OPEN {
            return Err(InvitesError::TooMany(self.folder.clone()));
        }
        let secret = Secret::random().map_err(|_| InvitesError::Random)?;
        let digest = secret.digest();
        let kept = Kept {
            secret: hex(&digest),
            identity: offer.identity.to_string(),
            alternative_names: offer.alternative_names.clone(),
            agents: offer.agents.clone(),
            days: offer.days,
            made: now,
            ends: now.saturating_add(ttl.as_secs()),
            used: None,
        };
        let path = self.path(&digest);
        self.write(&path, &kept)?;
        Ok((secret, id(&digest)))
    }

    /// Uses the invitation with this secret for the key with this digest. Once this has returned a claim, the
    /// invitation is worth nothing to any other key, whatever happens.
    ///
    /// # Errors
    /// There is none, it has ended, is for somebody else, or was used by another key. Fails closed where the files
    /// cannot be read or written.
    pub fn claim(
        &self,
        secret: &Secret,
        asked: &Identity,
        key: &Digest,
        from: &str,
        now: u64,
    ) -> Result<Claim, Rejection> {
        let digest = secret.digest();
        let path = self.path(&digest);
        // Without this, the first guess would fail for want of a folder.
        if !path.exists() {
            return Err(Rejection::Unknown);
        }
        let _lock = self.lock()?;
        let Some(mut kept) = read(&path)? else { return Err(Rejection::Unknown) };
        if verify_slices_are_equal(kept.secret.as_bytes(), hex(&digest).as_bytes()).is_err() {
            return Err(Rejection::Unknown);
        }
        let id = id(&digest);
        let identity: Identity = kept
            .identity
            .parse()
            .map_err(|error| InvitesError::Malformed { path: path.clone(), reason: format!("{error}") })?;
        if identity != *asked {
            return Err(Rejection::OtherName { id, identity: kept.identity, asked: asked.clone() });
        }
        let key = hex(key);
        if let Some(used) = kept.used.take_if(|used| used.key != key) {
            return Err(Rejection::OtherKey { id, identity: kept.identity, used });
        }
        if now >= kept.ends {
            return Err(Rejection::Ended { id, identity: kept.identity });
        }
        let again = kept.used.is_some();
        if !again {
            kept.used = Some(Use { at: now, from: from.into(), key });
            self.write(&path, &kept)?;
        }
        let Kept { alternative_names, agents, days, .. } = kept;
        Ok(Claim { id, offer: Offer { identity, alternative_names, agents, days }, again })
    }

    /// Says where hosts that join find the CA's process, for the tokens that are made from now on.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn announce(&self, addresses: &[Address]) -> Result<(), InvitesError> {
        self.make_folder()?;
        let path = self.folder.join(ADDRESSES);
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        atomic_file::replace(&path, "invite", text.as_bytes(), 0o600).map_err(|source| InvitesError::File {
            what: "write",
            path,
            source,
        })
    }

    /// Where the CA's process said that it is found; empty where it never ran.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn addresses(&self) -> Result<Vec<Address>, InvitesError> {
        let path = self.folder.join(ADDRESSES);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| Address::parse(line, DEFAULT_PORT).ok()).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(InvitesError::File { what: "read", path, source }),
        }
    }

    fn make_folder(&self) -> Result<(), InvitesError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|source| InvitesError::File { what: "make", path: self.folder.clone(), source })
    }

    /// Removes what ended long ago.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn sweep(&self, now: u64) -> Result<(), InvitesError> {
        if !self.folder.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.sweep_locked(now).map(drop)
    }

    /// Removes what ended long ago and what an interrupted write left; gives how many are open.
    fn sweep_locked(&self, now: u64) -> Result<usize, InvitesError> {
        let failed =
            |source| InvitesError::File { what: "read the folder", path: self.folder.clone(), source };
        let mut open = 0;
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let old = match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => match read(&path) {
                    Ok(Some(kept)) => {
                        open += usize::from(kept.used.is_none() && now < kept.ends);
                        now >= kept.ends.saturating_add(KEPT.as_secs())
                    }
                    Ok(None) => false,
                    // Whatever it was, it lets nobody in.
                    Err(InvitesError::Malformed { .. }) => true,
                    Err(error) => return Err(error),
                },
                Some("tmp") => true,
                _ => false,
            };
            if old {
                match fs::remove_file(&path) {
                    Err(source) if source.kind() != ErrorKind::NotFound => {
                        return Err(InvitesError::File { what: "remove", path, source });
                    }
                    _ => {}
                }
            }
        }
        Ok(open)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}.json", id(digest)))
    }

    fn write(&self, path: &Path, kept: &Kept) -> Result<(), InvitesError> {
        let failed = |source| InvitesError::File { what: "write", path: path.into(), source };
        let text = serde_json::to_vec(kept).map_err(|error| failed(error.into()))?;
        atomic_file::replace(path, "invite", &text, 0o600).map_err(failed)
    }

    /// Held while files are changed, by this process and others.
    fn lock(&self) -> Result<File, InvitesError> {
        let path = self.folder.join(".lock");
        let open = || {
            let file = File::options().create(true).append(true).mode(0o600).open(&path)?;
            file.lock().map(|()| file)
        };
        open().map_err(|source| InvitesError::File { what: "lock", path: path.clone(), source })
    }
}

/// What names an invitation in its file's name and in the log. It does not help to guess the secret.
fn id(digest: &Digest) -> String {
    hex(&digest[..ID_BYTES])
}

fn read(path: &Path) -> Result<Option<Kept>, InvitesError> {
    let read = || {
        let file = File::open(path)?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE_BYTES), &mut text).map(|_| text)
    };
    let text = match read() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|source| InvitesError::File { what: "read", path: path.into(), source })?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| InvitesError::Malformed { path: path.into(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn offer() -> Offer {
        Offer {
            identity: "ct112".parse().unwrap(),
            alternative_names: vec!["10.0.0.12".into()],
            agents: vec!["grok".parse().unwrap()],
            days: 7,
        }
    }

    #[test]
    fn an_invitation_lets_one_key_in() {
        let folder = tempfile::tempdir().unwrap();
        let invites = Invites::of_ca(folder.path());
        let (secret, id) = invites.create(&offer(), MINUTE, 1000).unwrap();
        let ct112 = offer().identity;
        let claim = |secret: &Secret, identity: &Identity, key: u8, now| {
            invites.claim(secret, identity, &[key; 32], "10.0.0.9", now)
        };
        let other = Secret::random().unwrap();
        assert!(matches!(claim(&other, &ct112, 1, 1001), Err(Rejection::Unknown)));
        let ct113 = "ct113".parse().unwrap();
        assert!(matches!(claim(&secret, &ct113, 1, 1001), Err(Rejection::OtherName { .. })));
        let first = claim(&secret, &ct112, 1, 1001).unwrap();
        assert_eq!((first.offer, first.id, first.again), (offer(), id, false));
        // As another process would see it.
        assert!(claim(&secret, &ct112, 1, 1059).unwrap().again);
        assert!(matches!(claim(&secret, &ct112, 2, 1059), Err(Rejection::OtherKey { .. })));
        assert!(matches!(claim(&secret, &ct112, 1, 1060), Err(Rejection::Ended { .. })));
        let all = fs::read_dir(folder.path().join("invites")).unwrap();
        for entry in all {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(!text.contains(&*secret.to_text()), "the secret is kept: {text}");
        }
    }

    #[test]
    fn old_invitations_are_swept_and_open_ones_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let invites = Invites::of_ca(folder.path());
        for _ in 0..MOST_OPEN {
            invites.create(&offer(), MINUTE, 1000).unwrap();
        }
        assert!(matches!(invites.create(&offer(), MINUTE, 1001), Err(InvitesError::TooMany(_))));
        let (secret, _) = invites.create(&offer(), MINUTE, 2000).unwrap();
        invites.sweep(2000 + KEPT.as_secs()).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("invites")).unwrap().count(), 2);
        let late = invites.claim(&secret, &offer().identity, &[1; 32], "x", 3000);
        assert!(matches!(late, Err(Rejection::Ended { .. })));
    }
}
