//! The mesh's certificate authority as files, in the reference document's layout.
//!
//! ```text
//! <dir>/intermediate/ca-chain.pem      the intermediate (and its predecessors, until they end), then the root:
//!                                      what every node trusts
//! <dir>/intermediate/crl.pem           what is revoked, a list for each intermediate
//! <dir>/intermediate/intermediate.key  signs what is issued (0600); may lie elsewhere (`--signing-key`)
//! <dir>/issued/<name>.crt, .key        a leaf with the intermediate behind it; its key (0600)
//! <dir>/issued/superseded/             the certificates that were renewed, so that they can be revoked
//! <root-dir>/root.crt, root.key        signs intermediates; keep it off the shared folder
//! ```
//! Nothing is ever overwritten, except what a renewal or a revocation is there to replace. A file appears under
//! its name only when it is complete and on disk, and `ca-chain.pem` comes last, so a CA without it is one whose
//! making was interrupted.

mod authority;
pub mod command;
mod examine;
mod files;
mod report;
mod revoke;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, Material, MaterialError};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    RsaKeySize, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use files::{make_dir, replace, write_new};

/// Where the reference document keeps the CA.
pub const DEFAULT_DIR: &str = "/rivet-shared/rivet-ca";
/// Where the root key lies, on one host only.
pub const DEFAULT_ROOT_DIR: &str = "/etc/mesh/ca-root";
/// Validity of a leaf, in days.
pub const LEAF_DAYS: u32 = 90;
/// `meshctl ca renew --all` renews what ends within so many days.
pub const RENEW_WITHIN_DAYS: u32 = 30;

/// Certificates begin this much earlier, so that a host whose clock is behind accepts them at once.
const BACKDATE: Duration = Duration::hours(1);

/// Why the CA cannot do what was asked. Nothing was changed unless the text says so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum CaError {
    #[error("{} exists already, and nothing is overwritten{hint}", path.display())]
    Exists { path: PathBuf, hint: &'static str },
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
        "the key that signs is not at {}; if it was moved off the shared folder, name it with --signing-key FILE \
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
    #[error("nothing is revoked: {0}")]
    NothingToRevoke(String),
    #[error(
        "the root key must lie apart from the shared folder, but {} is inside {}; choose another --root-dir",
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
    #[error("{0:?} is no host name and no address, so it cannot be an alternative name")]
    AlternativeName(String),
    #[error("{name} is the name of another node; a certificate of {node} must not hold it")]
    NameOfOther { name: String, node: NodeName },
    #[error(
        "the intermediate that signs (in {}) {when}; `meshctl ca renew-intermediate` makes a new one", path.display()
    )]
    IntermediateEnds { path: PathBuf, when: String },
    #[error("the root in {} {when}; make a new CA with another --dir and --root-dir", path.display())]
    RootEnds { path: PathBuf, when: String },
    #[error("no random numbers from the operating system")]
    Random,
}

/// Kinds of key that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[allow(missing_docs)] // the names say it
pub enum KeyType {
    #[default]
    EcP256,
    EcP384,
    Ed25519,
    #[value(name = "rsa-2048")]
    Rsa2048,
    #[value(name = "rsa-3072")]
    Rsa3072,
    #[value(name = "rsa-4096")]
    Rsa4096,
}

impl KeyType {
    fn generate(self) -> Result<KeyPair, CaError> {
        let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        match self {
            Self::EcP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Self::EcP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Self::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            Self::Rsa2048 => rsa(RsaKeySize::_2048),
            Self::Rsa3072 => rsa(RsaKeySize::_3072),
            Self::Rsa4096 => rsa(RsaKeySize::_4096),
        }
        .map_err(make("a key"))
    }

    /// The kind of a certificate's key, as far as it can be made here. A short RSA key counts as the shortest
    /// that peers accept.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let key = parsed.public_key();
        let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        match (key.parsed().ok()?, curve.map(|oid| oid.to_id_string()).as_deref()) {
            (PublicKey::RSA(rsa), _) => Some(match rsa.key_size() {
                ..=2048 => Self::Rsa2048,
                2049..=3072 => Self::Rsa3072,
                _ => Self::Rsa4096,
            }),
            (PublicKey::EC(_), Some("1.2.840.10045.3.1.7")) => Some(Self::EcP256),
            (PublicKey::EC(_), Some("1.3.132.0.34")) => Some(Self::EcP384),
            _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// What to issue.
#[derive(Debug, Clone)]
pub struct Order {
    /// For whom; becomes the CN.
    pub identity: Identity,
    /// Host names and addresses beside `<node>.mesh`.
    pub alternative_names: Vec<String>,
    /// Validity from now, cut to that of the intermediate.
    pub days: u32,
    /// The new key.
    pub key_type: KeyType,
}

impl Order {
    /// An order with the usual validity and key.
    pub fn new(identity: Identity, alternative_names: Vec<String>) -> Self {
        Self { identity, alternative_names, days: LEAF_DAYS, key_type: KeyType::default() }
    }
}

/// What was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// What the certificate says.
    pub leaf: Leaf,
}

/// A CA's folder. Making one of these touches nothing.
#[derive(Debug, Clone)]
pub struct Ca {
    dir: PathBuf,
    signing_key: Option<PathBuf>,
}

impl Ca {
    /// The CA below `dir`, whether it exists or not.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), signing_key: None }
    }

    /// The same CA, whose signing key lies elsewhere than in its folder.
    pub fn signing_with(self, key: Option<PathBuf>) -> Self {
        Self { signing_key: key, ..self }
    }

    /// What every node trusts.
    pub fn chain_path(&self) -> PathBuf {
        self.dir.join("intermediate/ca-chain.pem")
    }

    /// What is revoked, for `proxy.crl_path`.
    pub fn crl_path(&self) -> PathBuf {
        self.dir.join("intermediate/crl.pem")
    }

    /// The key that signs what is issued.
    pub fn signing_key_path(&self) -> PathBuf {
        self.signing_key.clone().unwrap_or_else(|| self.dir.join("intermediate/intermediate.key"))
    }

    /// The certificate and key issued under this name.
    pub fn issued_paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let issued = self.dir.join("issued");
        (issued.join(format!("{name}.crt")), issued.join(format!("{name}.key")))
    }

    /// Issues a certificate with a new key, having checked it as peers will.
    ///
    /// # Errors
    /// No usable CA, an order that makes no sense, or files that exist already.
    pub fn issue(&self, order: &Order) -> Result<Issued, CaError> {
        let (certificate, key) = self.issued_paths(&order.identity.to_string());
        match (certificate.exists(), key.exists()) {
            (false, false) => {}
            (false, true) => return Err(CaError::HalfIssued { found: key, missing: certificate }),
            (true, _) => {
                return Err(CaError::Exists {
                    path: certificate,
                    hint: "; `meshctl ca renew` issues it anew",
                });
            }
        }
        let (pair, chain, leaf) = self.sign(order)?;
        make_dir(&self.dir.join("issued"), 0o755)?;
        write_new(&key, &pair.serialize_pem(), 0o600)?;
        write_new(&certificate, &chain, 0o644)?;
        Ok(Issued { certificate, key, leaf })
    }

    /// Issues what `identity` has once more: the same names, a new key (of the same kind unless told), new dates.
    ///
    /// # Errors
    /// As [`Ca::issue`], but the certificate must exist. A copy of it is kept, the key is replaced, and the
    /// certificate right after it, each at once.
    pub fn renew(
        &self,
        identity: &Identity,
        days: u32,
        key_type: Option<KeyType>,
    ) -> Result<Issued, CaError> {
        let (certificate, key) = self.issued_paths(&identity.to_string());
        if !certificate.exists() {
            return Err(CaError::NothingToRenew { path: certificate });
        }
        let old = certificate::read_certificates("certificate", &certificate)?;
        let old_leaf = Leaf::parse(&old[0])
            .map_err(|source| MaterialError::Parse { path: certificate.clone(), source })?;
        let alternative_names =
            old_leaf.dns_names.into_iter().chain(old_leaf.addresses.iter().map(IpAddr::to_string)).collect();
        let key_type = key_type.or_else(|| KeyType::of(&old[0])).unwrap_or_default();
        let order = Order { identity: identity.clone(), alternative_names, days, key_type };
        let (pair, chain, leaf) = self.sign(&order)?;
        self.keep_superseded(&certificate, &old[0])?;
        replace(&key, &pair.serialize_pem(), 0o600)?;
        replace(&certificate, &chain, 0o644)?;
        Ok(Issued { certificate, key, leaf })
    }

    /// [`Ca::renew`], unless the new certificate would not last longer than the old one, which has so many days left.
    ///
    /// # Errors
    /// As there, or the intermediate ends as soon.
    pub fn renew_longer(
        &self,
        identity: &Identity,
        days: u32,
        key_type: Option<KeyType>,
        days_left: i64,
    ) -> Result<Issued, CaError> {
        let authorities = self.authorities()?;
        let ends = self.signer(&authorities)?.0.days_left(UnixTime::now());
        if ends <= days_left && ends < i64::from(days) {
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when: examine::ends(ends) });
        }
        self.renew(identity, days, key_type)
    }

    /// Where certificates stay that were renewed: they work until they end, unless they are revoked.
    fn superseded_dir(&self) -> PathBuf {
        self.dir.join("issued/superseded")
    }

    fn keep_superseded(&self, path: &Path, certificate: &CertificateDer<'_>) -> Result<(), CaError> {
        let content = files::read(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let serial = examine::serial(certificate).unwrap_or_default();
        make_dir(&self.superseded_dir(), 0o755)?;
        match write_new(&self.superseded_dir().join(format!("{stem}-{serial}.crt")), &content, 0o644) {
            // An earlier renewal was interrupted right behind this.
            Err(CaError::Exists { .. }) => Ok(()),
            kept => kept,
        }
    }

    /// The new key, the leaf with the intermediate as PEM, and what the leaf says.
    fn sign(&self, order: &Order) -> Result<(KeyPair, String, Leaf), CaError> {
        let authorities = self.authorities()?;
        let (intermediate, issuer) = self.signer(&authorities)?;
        let pair = order.key_type.generate()?;
        let now = OffsetDateTime::now_utc();
        let days_left = intermediate.days_left(UnixTime::now());
        if days_left < 1 {
            let when = examine::ends(days_left);
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when });
        }
        let mut params = leaf_params(order)?;
        params.not_after = now + Duration::days(i64::from(order.days).min(days_left));
        let signed = params.signed_by(&pair, &issuer).map_err(make("the certificate"))?;

        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(authorities.iter().map(|authority| authority.der.clone()));
        let (path, _) = self.issued_paths(&order.identity.to_string());
        let leaf = Leaf::parse(signed.der())
            .map_err(|source| MaterialError::Parse { path: path.clone(), source })?;
        let material = Material {
            cert_path: path,
            chain: vec![signed.der().clone()],
            leaf: leaf.clone(),
            roots: roots.into(),
            crls: Vec::new(),
        };
        examine::accepted(&material, UnixTime::now()).map_err(CaError::SelfCheck)?;
        // A peer that trusts the root alone needs the intermediate too.
        Ok((pair, format!("{}{}", signed.pem(), intermediate.pem), leaf))
    }
}

fn leaf_params(order: &Order) -> Result<CertificateParams, CaError> {
    let mut params = dated(&order.identity.to_string())?;
    // Explicit, because that is what makes rcgen write the subject key identifier.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut names = Vec::new();
    if let Identity::Node(node) = &order.identity {
        params.extended_key_usages.insert(0, ExtendedKeyUsagePurpose::ServerAuth);
        names.push(node.mesh_host());
    }
    for name in &order.alternative_names {
        match (NodeName::from_mesh_host(name), order.identity.node()) {
            (Some(named), Some(node)) if named != *node => {
                return Err(CaError::NameOfOther { name: name.clone(), node: node.clone() });
            }
            _ => names.push(name.to_ascii_lowercase()),
        }
    }
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            continue;
        }
        let bad = || CaError::AlternativeName(name.clone());
        params.subject_alt_names.push(match ServerName::try_from(name.as_str()).map_err(|_| bad())? {
            ServerName::IpAddress(address) => SanType::IpAddress(IpAddr::from(address)),
            _ => SanType::DnsName(name.as_str().try_into().map_err(|_| bad())?),
        });
    }
    Ok(params)
}

/// What all certificates share. The end of validity is the caller's.
fn dated(name: &str) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = OffsetDateTime::now_utc() - BACKDATE;
    params.use_authority_key_identifier_extension = true;
    // RFC 5280, section 4.1.2.2: positive, at most 20 octets.
    let mut serial = [0; 20];
    random(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn random(buffer: &mut [u8]) -> Result<(), CaError> {
    certificate::provider().secure_random.fill(buffer).map_err(|_| CaError::Random)
}

fn read_pair(path: &Path) -> Result<KeyPair, CaError> {
    let der = certificate::read_key(path)?;
    KeyPair::try_from(&der).map_err(make("a signature with this key"))
}

fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Make { what, source }
}

fn absolute(path: &Path) -> Result<PathBuf, CaError> {
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

#[cfg(test)]
mod tests;
