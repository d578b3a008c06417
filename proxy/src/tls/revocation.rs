//! The newest revocation lists that this node knows, wherever they came from: its files, the CA, a peer, or an earlier
//! run. A list never goes back to an older one.
//!
//! Lists are signed, so it does not matter who passes one on. What strangers can make grow or cost is bounded: only
//! lists of CAs in the trust bundle are kept, and a signature is verified only of a list that would be news.

mod memory;

use std::collections::HashSet;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::HeaderValue;
use mesh_shared::certificate::TrustBundle;
use mesh_shared::config::Config;
use mesh_shared::material::{Coverage, Material};
use mesh_shared::revocation::{self, RevocationList};
use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use tokio::sync::Notify;

use crate::metrics::ListVerdict;
use memory::Memory;

/// Most bytes of lists that pass between nodes at once.
pub const MAX_BYTES: usize = 1 << 20;
/// How lists are labelled.
pub const MEDIA_TYPE: &str = "application/x-pem-file";
/// How the answer begins to whoever sends lists; the number of those that were news follows.
pub const TAKEN: &[u8] = br#"{"taken":"#;
/// Most lists in them; a CA has one, or one for each scope.
const MAX_LISTS: usize = 64;
/// So many refused lists are recognised without another look at their signature.
const REFUSED: usize = 256;

/// What this node knows.
pub struct Lists {
    memory: Memory,
    /// The tag of what was known before this run.
    remembered: HeaderValue,
    known: Mutex<Vec<RevocationList>>,
    /// Digests of those that came from elsewhere than this run's files.
    learned: Mutex<HashSet<Digest>>,
    /// Digests of lists whose signature is not good, or that no verifier understands.
    refused: Mutex<HashSet<Digest>>,
    news: Notify,
}

/// Lists that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// PEM, or what it holds.
    #[error(transparent)]
    Pem(#[from] mesh_shared::pem::Mistake),
    /// More than any mesh has.
    #[error("there are more than {MAX_LISTS} PEM blocks")]
    TooMany,
}

impl Lists {
    /// Those that are remembered in `state_dir`.
    pub fn open(state_dir: &Path) -> Self {
        let memory = Memory::below(state_dir);
        let known = memory.recall();
        let learned = Mutex::new(known.iter().map(digest_of).collect());
        Self {
            memory,
            remembered: Shared::of_lists(known.clone()).tag,
            known: Mutex::new(known),
            learned,
            refused: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// The [`Shared::tag`] of what was known before this run.
    pub fn remembered(&self) -> &HeaderValue {
        &self.remembered
    }

    /// The newest of each issuer.
    pub fn known(&self) -> Vec<RevocationList> {
        self.known.lock().clone()
    }

    /// Takes what is news from the lists in a text that anybody may have sent, and judges each of them. Verifying takes
    /// processor time, so not on a thread that carries requests.
    ///
    /// # Errors
    /// A text that cannot be read; nothing of it is taken.
    pub fn offer(&self, text: &str, bundle: &TrustBundle) -> Result<Vec<ListVerdict>, Unreadable> {
        if memchr::memmem::find_iter(text.as_bytes(), "-----BEGIN ").take(MAX_LISTS + 1).count() > MAX_LISTS {
            return Err(Unreadable::TooMany);
        }
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        let offered = revocation::parse(text)?;
        let verdicts: Vec<_> = offered.into_iter().map(|list| self.take(list, bundle, now)).collect();
        if verdicts.contains(&ListVerdict::Taken) {
            self.memory.keep(&self.known());
            self.news.notify_one();
        }
        Ok(verdicts)
    }

    /// What costs least is looked at first.
    fn take(&self, list: RevocationList, bundle: &TrustBundle, now: i64) -> ListVerdict {
        if !bundle.anchors().iter().any(|anchor| anchor.subject == list.issuer) {
            return ListVerdict::UnknownIssuer;
        }
        if let Some(verdict) = no_news(&list, &self.known.lock()) {
            return verdict;
        }
        if list.this_update > now {
            return ListVerdict::Coming;
        }
        let digest = digest_of(&list);
        if self.refused.lock().contains(&digest) {
            return ListVerdict::Forged;
        }
        if !list.is_signed_by(bundle) || !list.is_understood(bundle) {
            let refused = &mut *self.refused.lock();
            if refused.len() >= REFUSED {
                refused.clear();
            }
            refused.insert(digest);
            return ListVerdict::Forged;
        }
        let known = &mut *self.known.lock();
        // Meanwhile another one may have come.
        if let Some(verdict) = no_news(&list, known) {
            return verdict;
        }
        replace(known, list);
        self.learned.lock().insert(digest);
        ListVerdict::Taken
    }

    /// Keeps the lists that count for `material`, and forgets those of issuers that it neither trusts nor names.
    pub fn keep(&self, material: &Material) {
        let in_force = material.revocations(UnixTime::now()).lists;
        let anchors = material.bundle.anchors();
        let lists = {
            let known = &mut *self.known.lock();
            known.retain(|list| anchors.iter().any(|anchor| anchor.subject == list.issuer));
            for list in in_force {
                if no_news(&list, known).is_none() {
                    replace(known, list);
                }
            }
            let digests: HashSet<_> = known.iter().map(digest_of).collect();
            self.learned.lock().retain(|digest| digests.contains(digest));
            known.clone()
        };
        // Other CAs may be trusted now.
        self.refused.lock().clear();
        self.memory.keep(&lists);
    }

    /// Waits until there is a list that somebody passed on and that is not in use yet.
    pub async fn learned(&self) {
        self.news.notified().await;
    }
}

type Digest = [u8; 32];

fn digest_of(list: &RevocationList) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, &list.der).as_ref());
    bytes
}

/// Why a list need not be looked at any further.
fn no_news(list: &RevocationList, known: &[RevocationList]) -> Option<ListVerdict> {
    let known = known.iter().find(|known| known.is_about_the_same_as(list))?;
    match (known.der == list.der, list.is_newer_than(known)) {
        (true, _) => Some(ListVerdict::Known),
        (false, false) => Some(ListVerdict::Older),
        (false, true) => None,
    }
}

fn replace(known: &mut Vec<RevocationList>, list: RevocationList) {
    known.retain(|other| !other.is_about_the_same_as(&list));
    known.push(list);
}

/// What a node passes on to others: the lists in use whose issuers are in its trust bundle.
#[derive(Debug, Clone)]
pub struct Shared {
    /// As PEM.
    pub pem: Bytes,
    /// The same for the same lists on all nodes.
    pub tag: HeaderValue,
}

impl Shared {
    /// Those that count for `material`.
    pub fn of(material: &Material) -> Self {
        let anchors = material.bundle.anchors();
        Self::of_lists(
            material
                .revocations(UnixTime::now())
                .lists
                .into_iter()
                .filter(|list| anchors.iter().any(|anchor| anchor.subject == list.issuer)),
        )
    }

    /// These.
    pub fn of_lists(lists: impl IntoIterator<Item = RevocationList>) -> Self {
        let mut lists: Vec<_> = lists.into_iter().map(|list| (digest_of(&list), list.pem)).collect();
        lists.sort();
        let digests: Vec<u8> = lists.iter().flat_map(|(digest, _)| *digest).collect();
        let of_all = digest(&SHA256, &digests);
        let tag: String = of_all.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let pem: String = lists.into_iter().map(|(_, pem)| pem).collect();
        // Hexadecimal digits are a valid value.
        let tag = HeaderValue::try_from(format!("\"{tag}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Self { pem: pem.into(), tag }
    }
}

/// Adds lists that were found without being configured; returns what is wrong with their files, each in a sentence.
pub fn add_found(config: &Config, material: &mut Material) -> Vec<String> {
    let mut problems = Vec::new();
    if material.coverage == Coverage::Required {
        return problems;
    }
    for path in revocation::beside(&config.mesh.tls.ca_path).into_iter().filter(|path| path.exists()) {
        match revocation::read(&path) {
            Ok(lists) => {
                for list in lists {
                    match list.is_understood(&material.bundle) {
                        true => material.crls.push(list),
                        false => problems.push(format!(
                            "the revocation list of {} in {} has a form that is not supported, so it is ignored",
                            list.issuer_name,
                            path.display()
                        )),
                    }
                }
            }
            Err(error) => problems.push(format!("{error}; it is ignored")),
        }
    }
    problems
}

/// Adds the lists that are known to those of the files; returns what is wrong with the files, each in a sentence.
pub fn join(material: &mut Material, lists: &Lists) -> Vec<String> {
    let (known, learned) = (lists.known(), lists.learned.lock().clone());
    let of_files = material.revocations(UnixTime::now());
    let mut problems = Vec::new();
    let mut told = |list: &RevocationList, what: &str| {
        let place = match material.coverage {
            Coverage::Required => " (proxy.crl_path)",
            Coverage::Optional => "",
        };
        problems.push(format!("the revocation list of {}{place} {what}", list.issuer_name));
    };
    for list in &of_files.forged {
        told(list, "was not signed by that CA, so it is ignored");
    }
    for list in &of_files.coming {
        told(list, "says that it was made in the future, so it is not used yet (is a clock wrong?)");
    }
    for list in &of_files.lists {
        let newer = |known: &&RevocationList| known.is_about_the_same_as(list) && known.is_newer_than(list);
        // Where the newer one came from a peer, a file that nobody brings up to date is not a mistake.
        if known.iter().filter(newer).any(|known| !learned.contains(&digest_of(known))) {
            told(
                list,
                "is older than the one in use, which stays in use; was an old file put back? Publish a new list",
            );
        }
    }
    // Only of issuers that are still trusted or named in the files: nothing piles up.
    let mine = |list: &RevocationList| {
        let anchors = material.bundle.anchors();
        anchors.iter().any(|anchor| anchor.subject == list.issuer)
            || of_files.lists.iter().any(|known| known.issuer == list.issuer)
    };
    let more: Vec<_> = known.into_iter().filter(|list| mine(list)).collect();
    material.crls.extend(more);
    problems
}
