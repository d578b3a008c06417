//! `issued/index.jsonl`: everything that was ever issued, and what was revoked of it and why.
//!
//! A line for each event, only ever appended, so no entry is lost when its files are removed. An entry is written
//! before its certificate leaves the CA. What is in the folder and is not in it (an older folder, certificates of
//! openssl) is taken in by the next change.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mesh_shared::atomic_file::sync_folder;
use mesh_shared::certificate::{self, Leaf, MaterialError};
use mesh_shared::identity::Identity;
use mesh_shared::name::AgentName;
use mesh_shared::spiffe::SpiffeId;
use rustls::pki_types::UnixTime;

use crate::authority::Authority;
use crate::certificate::{Certificate, hex};
use crate::digest;
use crate::error::CaError;
use crate::files;
use crate::lists::Lists;
use crate::model::Ca;
use crate::record::{Event, Issuance, Origin, Revocation};

/// A certificate that was issued, and what became of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What was issued.
    pub issuance: Issuance,
    /// Whether it was revoked.
    pub revoked: Option<Revocation>,
    /// Where it lies, if it does.
    pub path: Option<PathBuf>,
    /// Whether it is the one that was issued last under its name.
    pub current: bool,
}

impl Entry {
    /// Whom it names; `None` for what another program wrote.
    pub fn identity(&self) -> Option<Identity> {
        self.issuance.name.parse().ok()
    }

    /// Whether its time is over.
    pub fn has_ended(&self, now: UnixTime) -> bool {
        self.issuance.not_after < now.as_secs() as i64
    }

    /// The agents that these SPIFFE IDs of its let it host.
    pub(crate) fn hosted(&self, ids: &[String]) -> Vec<AgentName> {
        let hosted = ids.iter().filter_map(|id| match id.parse::<SpiffeId>().ok()?.identity()? {
            Identity::Agent(agent, node) if self.identity() == Some(Identity::Node(node.clone())) => {
                Some(agent)
            }
            _ => None,
        });
        hosted.collect()
    }

    /// Which of these signed it, as far as names and key identifiers tell.
    pub(crate) fn authority<'a>(&self, authorities: &'a [Authority]) -> Option<&'a Authority> {
        authorities.iter().find(|authority| {
            let key = authority.certificate.subject_key.as_deref().map(hex);
            let same_key =
                key.is_none() || self.issuance.issuer_key.is_none() || key == self.issuance.issuer_key;
            authority.certificate.cn.as_deref() == Some(&self.issuance.issuer) && same_key
        })
    }

    /// Its serial number.
    pub(crate) fn serial(&self) -> Vec<u8> {
        let digits = &self.issuance.serial;
        let digits = if digits.len().is_multiple_of(2) { digits.clone() } else { format!("0{digits}") };
        let byte = |at| digits.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        (0..digits.len()).step_by(2).map_while(byte).collect()
    }
}

/// What the index says of each certificate, and what is in the folder.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) entries: Vec<Entry>,
    /// Lines that cannot be read, counted from 1.
    pub(crate) damaged: Vec<usize>,
    by_serial: HashMap<String, Vec<usize>>,
    keys: HashSet<String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self, CaError> {
        let mut index = Self::default();
        let text = match files::read(path) {
            Err(CaError::File { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(index),
            text => text?,
        };
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(event) => index.apply(&event),
                Err(_) => index.damaged.push(i + 1),
            }
        }
        Ok(index)
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Issued(issuance) => {
                if self.find(&issuance.serial, &issuance.issuer, issuance.issuer_key.as_deref()).is_some() {
                    return;
                }
                self.by_serial.entry(issuance.serial.clone()).or_default().push(self.entries.len());
                self.keys.insert(issuance.key.clone());
                let issuance = issuance.clone();
                self.entries.push(Entry { issuance, revoked: None, path: None, current: false });
            }
            Event::Revoked(revocation) => {
                let Revocation { serial, issuer, issuer_key, .. } = revocation;
                if let Some(at) = self.find(serial, issuer, issuer_key.as_deref()) {
                    self.entries[at].revoked.get_or_insert_with(|| revocation.clone());
                }
            }
            Event::Other => {}
        }
    }

    fn find(&self, serial: &str, issuer: &str, issuer_key: Option<&str>) -> Option<usize> {
        let mut same = self.by_serial.get(serial)?.iter().copied();
        same.find(|at| {
            let known = &self.entries[*at].issuance;
            let same_key = match (known.issuer_key.as_deref(), issuer_key) {
                (Some(one), Some(other)) => one == other,
                _ => true,
            };
            known.issuer == issuer && same_key
        })
    }

    /// The entry of a certificate.
    pub(crate) fn of(&self, certificate: &Certificate) -> Option<&Entry> {
        self.place_of(certificate).map(|at| &self.entries[at])
    }

    fn place_of(&self, certificate: &Certificate) -> Option<usize> {
        let key = certificate.issuer_key.as_deref().map(hex);
        self.find(&certificate.serial_text(), &certificate.issuer_cn, key.as_deref())
    }

    /// Whether a certificate for this key was issued.
    pub(crate) fn has_key(&self, digest: &[u8; 32]) -> bool {
        self.keys.contains(&digest::hex(digest))
    }

    /// The one that was issued last under this name.
    pub(crate) fn current(&self, identity: &Identity) -> Option<&Entry> {
        let name = identity.to_string();
        self.entries.iter().find(|entry| entry.current && entry.issuance.name == name)
    }
}

impl Ca {
    /// What is known of everything that was issued, and the events that the file lacks.
    pub(crate) fn survey(
        &self,
        authorities: &[Authority],
        lists: &Lists,
    ) -> Result<(Index, Vec<Event>), CaError> {
        let mut index = Index::read(&self.index_path())?;
        let mut missing = Vec::new();
        for (folder, extension, current) in [
            (self.dir.join("issued"), "crt", true),
            (self.superseded_dir(), "crt", false),
            // openssl keeps a copy of each, by serial number, where RivetOS has its intermediate.
            (self.dir.join("intermediate"), "pem", false),
        ] {
            for path in files::listed(&folder)? {
                if path.extension() != Some(OsStr::new(extension)) {
                    continue;
                }
                if !current && let Some(at) = index.named_by(&path) {
                    index.entries[at].path.get_or_insert(path);
                    continue;
                }
                // What cannot be read, `verify` tells.
                let Ok((certificate, leaf)) = read_leaf(&path) else { continue };
                if !authorities.iter().any(|authority| certificate.is_of(&authority.certificate)) {
                    continue;
                }
                let at = match index.place_of(&certificate) {
                    Some(at) => at,
                    None => {
                        let found = Issuance::of(&certificate, &leaf, Origin::Found, leaf.not_before, "");
                        let event = Event::Issued(found);
                        index.apply(&event);
                        missing.push(event);
                        index.entries.len() - 1
                    }
                };
                let own = self.issued_paths(&leaf.identity.to_string()).0 == path;
                let entry = &mut index.entries[at];
                entry.current |= current && own;
                if current {
                    entry.path = Some(path);
                } else {
                    entry.path.get_or_insert(path);
                }
            }
        }
        let now = UnixTime::now();
        let revoked: Vec<_> = index
            .entries
            .iter()
            .filter(|entry| entry.revoked.is_none() && !entry.has_ended(now))
            .filter_map(|entry| {
                let issuer = &entry.authority(authorities)?.certificate.subject;
                let (at, why) = lists.find(issuer, &entry.serial())?;
                Some(Event::Revoked(Revocation::of(&entry.issuance, at, why, "")))
            })
            .collect();
        for event in revoked {
            index.apply(&event);
            missing.push(event);
        }
        Ok((index, missing))
    }

    /// Appends events, on disk when this returns.
    pub(crate) fn append(&self, index: &mut Index, events: &[Event]) -> Result<(), CaError> {
        if events.is_empty() {
            return Ok(());
        }
        let path = self.index_path();
        let mut text = String::new();
        for event in events {
            let line = serde_json::to_string(event).map_err(std::io::Error::other);
            text.push_str(&line.map_err(|source| CaError::File {
                what: "write",
                path: path.clone(),
                source,
            })?);
            text.push('\n');
        }
        write_end(&path, &text).map_err(|source| CaError::File { what: "write", path, source })?;
        for event in events {
            index.apply(event);
        }
        Ok(())
    }

    pub(crate) fn index_path(&self) -> PathBuf {
        self.dir.join("issued/index.jsonl")
    }
}

impl Index {
    /// The entry of a file that is named by its serial number, as in `ct110-5f….crt` and `5F….pem`.
    fn named_by(&self, path: &Path) -> Option<usize> {
        let stem = path.file_stem()?.to_str()?;
        let serial = stem.rsplit('-').next()?.to_ascii_lowercase();
        let known =
            self.by_serial.get(&serial).or_else(|| self.by_serial.get(serial.trim_start_matches('0')));
        match known?.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }
}

/// A leaf and what it says.
pub(crate) fn read_leaf(path: &Path) -> Result<(Certificate, Leaf), MaterialError> {
    let (chain, leaf) = certificate::read_leaf(path)?;
    Ok((Certificate::of(&chain[0]), leaf))
}

fn write_end(path: &Path, text: &str) -> std::io::Result<()> {
    let new = !path.exists();
    let mut file: File = OpenOptions::new().read(true).append(true).create(true).mode(0o644).open(path)?;
    if new {
        files::belong_to_folder(&file, path);
    }
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    // A line that was cut off by a crash must not swallow the next one.
    let begin = if last == *b"\n" { "" } else { "\n" };
    file.write_all(format!("{begin}{text}").as_bytes())?;
    file.sync_all()?;
    if new { sync_folder(path) } else { Ok(()) }
}
