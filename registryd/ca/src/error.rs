//! Why the CA cannot do what was asked, in words that say what to do.

use std::path::PathBuf;

use mesh_shared::certificate::MaterialError;
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use mesh_shared::spiffe::SpiffeError;

use crate::request::RequestError;

/// Why the CA cannot do what was asked. Nothing was changed unless the text says so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum CaError {
    #[error("{} exists already, and nothing is overwritten{hint}", path.display())]
    Exists { path: PathBuf, hint: &'static str },
    #[error(
        "a RivetOS CA is already in {} ({}), and no second one is made beside it; `meshctl ca issue-node`, renew, revoke, \
         verify and list work with it as it is (or choose another --dir)",
        dir.display(), found.display()
    )]
    RivetOs { dir: PathBuf, found: PathBuf },
    #[error(
        "certificates were issued in {} ({}), but the CA that did so is not there ({} is missing); put its files back, or \
         choose another --dir",
        dir.display(), found.display(), missing.display()
    )]
    IssuedByNone { dir: PathBuf, found: PathBuf, missing: PathBuf },
    #[error(
        "the CA is only half made: {} exists, but {} does not. If nodes use this CA, put a copy of the missing \
         file back; else an earlier `meshctl ca init` was interrupted: remove {} and run it again",
        found.display(), missing.display(), found.display()
    )]
    HalfMade { found: PathBuf, missing: PathBuf },
    #[error(
        "the CA is only half made: {} exists, but {} does not. If that key was taken offline, the root is in \
         use: is the folder of {} mounted? Else remove {} and run this again, or choose another --root-dir",
        found.display(), missing.display(), dir.display(), found.display()
    )]
    RootHalfMade { found: PathBuf, missing: PathBuf, dir: PathBuf },
    #[error(
        "the CA is only half made: a root's key is here ({}), but {} is not. Keep that key: put the certificate \
         beside it if the root is in use, or choose another --root-dir",
        key.display(), missing.display()
    )]
    RootKeyAlone { key: PathBuf, missing: PathBuf },
    #[error(
        "a root CA is already here (CN={cn}, in {}), but {} is not. Is the shared folder mounted? \
         Otherwise choose another --root-dir; keep this one while any node trusts it",
        root_dir.display(), missing.display()
    )]
    RootExists { cn: String, root_dir: PathBuf, missing: PathBuf },
    #[error(
        "the root's key is needed, but {} is missing; run this on the host that keeps it, or name its folder \
         with --root-dir",
        missing.display()
    )]
    NoRoot { missing: PathBuf },
    #[error("{} is not the root in {}; name the folder of that one with --root-dir", root.display(), chain.display())]
    OtherRoot { root: PathBuf, chain: PathBuf },
    #[error("{} is the root's key, which is not replaced; name the intermediate's with --signing-key", path.display())]
    RootKeyNamed { path: PathBuf },
    #[error(
        "only half issued: {} exists without {}, so an earlier run was interrupted; remove it and issue again",
        found.display(), missing.display()
    )]
    HalfIssued { found: PathBuf, missing: PathBuf },
    #[error("there is no CA in {}: {} is missing; make one with `meshctl ca init` (or name another --dir)",
        dir.display(), missing.display())]
    NoCa { dir: PathBuf, missing: PathBuf },
    #[error(
        "the signing key is not at {}; if it was moved off the shared folder, name it with --signing-key FILE \
         (on the host that has it)",
        path.display()
    )]
    NoSigningKey { path: PathBuf },
    #[error(
        "the key of CN={cn} is not beside {}; without it nothing that it signed can be revoked, and no list be \
         made that hosts with proxy.crl_path need. If nothing of it is in use, take it out of ca-chain.pem",
        signing_key.display()
    )]
    NoFormerKey { cn: String, signing_key: PathBuf },
    #[error("there is no certificate {} to renew; use `meshctl ca issue-node`", path.display())]
    NothingToRenew { path: PathBuf },
    #[error("the certificate of {name} was revoked, so it cannot be renewed")]
    Revoked { name: Identity },
    #[error("nothing is revoked: {0}")]
    NothingToRevoke(String),
    #[error(
        "the root key must be outside the shared folder, but {} is inside {}; choose another --root-dir",
        root.display(), dir.display()
    )]
    RootInside { root: PathBuf, dir: PathBuf },
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Material(#[from] MaterialError),
    #[error("the new certificate would not work: {0}")]
    SelfCheck(#[source] MaterialError),
    #[error("{} does not belong to a certificate in {}", key.display(), certificate.display())]
    OtherKey { key: PathBuf, certificate: PathBuf },
    #[error("cannot make {what}: {source}")]
    Make { what: &'static str, source: rcgen::Error },
    #[error("{0:?} is neither a host name nor an address, so it cannot be an alternative name")]
    AlternativeName(String),
    #[error("{name} is the name of another node; a certificate of {node} must not hold it")]
    NameOfOther { name: String, node: NodeName },
    #[error(
        "{0} is the name of the CA's own process (`meshctl ca serve`), and no member's certificate holds it"
    )]
    NameOfEnrolment(String),
    #[error(
        "the intermediate that signs (in {}) {when}; `meshctl ca renew-intermediate` makes a new one", path.display()
    )]
    IntermediateEnds { path: PathBuf, when: String },
    #[error("the root in {} {when}; `meshctl ca renew-root` makes a new one", path.display())]
    RootEnds { path: PathBuf, when: String },
    #[error(
        "{} has been locked for a minute by {holder}; if that hangs, end it", path.display()
    )]
    Locked { path: PathBuf, holder: String },
    #[error("the signing request {0}")]
    Request(#[from] RequestError),
    #[error("the signing request is of {asked}, and not of {wanted}, for whom a certificate is to be signed")]
    OtherIdentity { asked: Identity, wanted: Identity },
    #[error(
        "a certificate for the key of this signing request was issued already; a request is good for one certificate, so \
         make a new key and a new request (`meshctl csr`)"
    )]
    KeyUsed,
    #[error(
        "the key of {name} was made where it is used and is not here; {name} renews it by itself, or with a new request \
         (`meshctl csr {name}` there, `meshctl ca sign` here)"
    )]
    KeyElsewhere { name: Identity },
    #[error("only a node can host agents, and {0} is not a node")]
    NoHost(Identity),
    #[error("no authority in {} is called {which:?} or has that serial number; `meshctl ca list` shows them", chain.display())]
    NothingToRetire { which: String, chain: PathBuf },
    #[error("several authorities are called {which:?}; name one by its serial number: {serials}")]
    SeveralToRetire { which: String, serials: String },
    #[error("CN={cn} signs what is issued; make its successor first (`meshctl ca renew-intermediate`)")]
    StillSigns { cn: String },
    #[error(
        "{count} unexpired certificates depend on CN={cn} ({first}{}); renew them, and revoke or wait for those from \
         before; or say --force, if no host uses them any more: then no node accepts them",
        if *count > 5 { ", …" } else { "" }
    )]
    StillNeeded { cn: String, count: usize, first: String },
    #[error("{}: {source}", path.display())]
    TrustDomain { path: PathBuf, source: SpiffeError },
    #[error("the operating system provides no random numbers")]
    Random,
}

/// What failed while something was made.
pub(crate) fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Make { what, source }
}
