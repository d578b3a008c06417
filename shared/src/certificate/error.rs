//! What can be wrong with a certificate, a key or one of their files.

use std::path::PathBuf;

use crate::identity::IdentityError;
use crate::name::NodeName;
use crate::pem::Mistake;
use crate::spiffe::{SpiffeError, SpiffeId};

/// What is wrong with a certificate, a key or one of their files.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum MaterialError {
    #[error("{what} {}: {source}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what} {}: {mistake}", path.display())]
    Pem { what: &'static str, path: PathBuf, mistake: Mistake },
    #[error("{what} {}: holds no {expected}", path.display())]
    Empty { what: &'static str, path: PathBuf, expected: &'static str },
    #[error(
        "private key {}: the key at line {line} is encrypted; decrypt it with `openssl pkey -in {} -out <file>` and \
         let only the owner read that file",
        path.display(), path.display()
    )]
    EncryptedKey { path: PathBuf, line: usize },
    #[error(
        "private key {}: holds {} private keys (lines {}); leave only the one that belongs to the certificate",
        path.display(), lines.len(), listed(lines)
    )]
    SeveralKeys { path: PathBuf, lines: Vec<usize> },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: LeafError },
    #[error(
        "trust bundle {}: line {line}: the certificate of {name} {reason}, so it must not be trusted to sign; take it out",
        path.display()
    )]
    Anchor { path: PathBuf, line: usize, name: String, reason: String },
    #[error(
        "trust bundle {}: none of its CA certificates is valid now: they have ended, or begin later (is the clock right?)",
        path.display()
    )]
    NoneValid { path: PathBuf },
    #[error("revocation list {}: {reason}", path.display())]
    Crl { path: PathBuf, reason: String },
    #[error(
        "certificate {}: CN {cn:?} names {found}, but mesh.node_name is {node}; \
         they must be the same (correct node_name, or issue a certificate for {node})",
        path.display()
    )]
    OtherNode { path: PathBuf, cn: String, found: String, node: NodeName },
    #[error("certificate {}: {reason}", path.display())]
    Untrusted { path: PathBuf, reason: String },
    #[error(
        "certificate {}: no subject alternative name {node}.mesh (it has {names}); peers verify that name, \
         so issue the certificate anew with it",
        path.display()
    )]
    NoMeshName { path: PathBuf, node: NodeName, names: String },
    #[error("private key {}: does not belong to the certificate {}", path.display(), certificate.display())]
    KeyMismatch { path: PathBuf, certificate: PathBuf },
    #[error("private key {}: {reason}", path.display())]
    Key { path: PathBuf, reason: String },
}

fn listed(lines: &[usize]) -> String {
    lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a leaf certificate names nobody in the mesh. In words that follow `certificate …:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LeafError {
    #[error("it is not an X.509 certificate ({0})")]
    Der(String),
    #[error("its subject has no common name")]
    NoCommonName,
    #[error("its subject has no common name, and its SPIFFE ID {0} is nobody's in proxy.tls.spiffe")]
    UnknownSpiffeId(SpiffeId),
    #[error("its subject has no common name, and {0} URIs in place of one; exactly one is allowed")]
    SeveralUris(usize),
    #[error("its subject has no common name, and its URI is not a SPIFFE ID: {0}")]
    NotSpiffe(SpiffeError),
    #[error("its subject has {0} common names; exactly one is allowed")]
    SeveralCommonNames(usize),
    #[error("its common name is not text")]
    NotText,
    #[error("its {0}")]
    Identity(#[from] IdentityError),
}
