//! The mesh's certificate authority as files, in the reference document's layout.
//!
//! ```text
//! <dir>/intermediate/ca-chain.pem      the intermediate, then the root: what every node trusts
//! <dir>/intermediate/intermediate.key  signs what is issued (0600)
//! <dir>/issued/<name>.crt, .key        a leaf with the intermediate behind it; its key (0600)
//! <root-dir>/root.crt, root.key        used once, to sign the intermediate; keep it off the shared folder
//! ```
//! Nothing is ever overwritten, except by [`Ca::renew`]. A file appears under its name only when it is complete
//! and on disk, and `ca-chain.pem` comes last, so a CA without it is one whose making was interrupted.

pub mod command;
mod examine;
mod files;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, Material, MaterialError};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, RsaKeySize, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::{Duration, OffsetDateTime};

pub use examine::Examined;
use files::{make_dir, replace, write_new};

/// Where the reference document keeps the CA.
pub const DEFAULT_DIR: &str = "/rivet-shared/rivet-ca";
/// Where the root key lies, on one host only.
pub const DEFAULT_ROOT_DIR: &str = "/etc/mesh/ca-root";
/// Validity of a leaf, in days.
pub const LEAF_DAYS: u32 = 90;

const ROOT_DAYS: i64 = 3653;
const INTERMEDIATE_DAYS: i64 = 1826;
/// Certificates begin this much earlier, so that a host whose clock is behind accepts them at once.
const BACKDATE: Duration = Duration::hours(1);

/// Why the CA cannot do what was asked. Nothing was changed unless the text says so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum CaError {
    #[error("{} exists already, and nothing is overwritten{hint}", path.display())]
    Exists { path: PathBuf, hint: &'static str },
    #[error(
        "the CA is only half made: {} exists, but {} does not, so an earlier `meshctl ca init` was \
         interrupted; remove {} and run it again",
        found.display(), missing.display(), found.display()
    )]
    HalfMade { found: PathBuf, missing: PathBuf },
    #[error(
        "only half issued: {} exists without {}, so an earlier run was interrupted; remove it and issue again",
        found.display(), missing.display()
    )]
    HalfIssued { found: PathBuf, missing: PathBuf },
    #[error("there is no CA in {}: {} is missing; make one with `meshctl ca init` (or name another --dir)",
        dir.display(), missing.display())]
    NoCa { dir: PathBuf, missing: PathBuf },
    #[error("there is no certificate {} to renew; use `meshctl ca issue-node`", path.display())]
    NothingToRenew { path: PathBuf },
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
    #[error("{} does not belong to the first certificate in {}", key.display(), certificate.display())]
    OtherKey { key: PathBuf, certificate: PathBuf },
    #[error("cannot make {what}: {source}")]
    Make { what: &'static str, source: rcgen::Error },
    #[error("{0:?} is no host name and no address, so it cannot be an alternative name")]
    AlternativeName(String),
    #[error("{name} is the name of another node; a certificate of {node} must not hold it")]
    NameOfOther { name: String, node: NodeName },
    #[error(
        "the intermediate in {} ends in {days} days; make a new CA in another --dir first", path.display()
    )]
    IntermediateEnds { path: PathBuf, days: i64 },
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
            Self::Rsa2048 => rsa(RsaKeySize::_2048),
            Self::Rsa3072 => rsa(RsaKeySize::_3072),
            Self::Rsa4096 => rsa(RsaKeySize::_4096),
        }
        .map_err(make("a key"))
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
}

impl Ca {
    /// The CA below `dir`, whether it exists or not.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// What every node trusts.
    pub fn chain_path(&self) -> PathBuf {
        self.dir.join("intermediate/ca-chain.pem")
    }

    /// The key that signs what is issued.
    pub fn intermediate_key_path(&self) -> PathBuf {
        self.dir.join("intermediate/intermediate.key")
    }

    /// The certificate and key issued under this name.
    pub fn issued_paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let issued = self.dir.join("issued");
        (issued.join(format!("{name}.crt")), issued.join(format!("{name}.key")))
    }

    /// Makes a CA: root, intermediate and the folder for what will be issued.
    ///
    /// # Errors
    /// Any of its files exists already, or a folder cannot be written. An interruption leaves a CA that
    /// every later command calls half made.
    pub fn init(&self, root_dir: &Path, key_type: KeyType) -> Result<(), CaError> {
        let (root_cert, root_key) = (root_dir.join("root.crt"), root_dir.join("root.key"));
        let chain = self.chain_path();
        if absolute(root_dir)?.starts_with(absolute(&self.dir)?) {
            return Err(CaError::RootInside { root: root_dir.into(), dir: self.dir.clone() });
        }
        if chain.exists() {
            return Err(CaError::Exists {
                path: chain,
                hint: "; this CA is complete, use it or choose another --dir",
            });
        }
        for found in [self.intermediate_key_path(), root_cert.clone(), root_key.clone()] {
            if found.exists() {
                return Err(CaError::HalfMade { found, missing: chain });
            }
        }

        let mut mark = [0; 4];
        random(&mut mark)?;
        // Without a mark of its own, every CA made here would have the same name, and a certificate of
        // another one would be "badly signed" instead of "from an unknown issuer".
        let mark = format!("{:08x}", u32::from_be_bytes(mark));
        let root_pair = key_type.generate()?;
        let root_params =
            authority(&format!("Mesh Root CA {mark}"), ROOT_DAYS, BasicConstraints::Unconstrained)?;
        let root = root_params.self_signed(&root_pair).map_err(make("the root"))?;
        let pair = key_type.generate()?;
        let params = authority(
            &format!("Mesh Intermediate CA {mark}"),
            INTERMEDIATE_DAYS,
            BasicConstraints::Constrained(0),
        )?;
        let issuer = Issuer::from_params(&root_params, &root_pair);
        let intermediate = params.signed_by(&pair, &issuer).map_err(make("the intermediate"))?;

        make_dir(root_dir, 0o700)?;
        make_dir(&self.dir.join("intermediate"), 0o755)?;
        make_dir(&self.dir.join("issued"), 0o755)?;
        write_new(&root_key, &root_pair.serialize_pem(), 0o600)?;
        write_new(&root_cert, &root.pem(), 0o644)?;
        write_new(&self.intermediate_key_path(), &pair.serialize_pem(), 0o600)?;
        write_new(&chain, &format!("{}{}", intermediate.pem(), root.pem()), 0o644)
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

    /// Issues what `name` has once more: the same names, a new key, a new validity.
    ///
    /// # Errors
    /// As [`Ca::issue`], but the certificate must exist. The key is replaced first and the certificate right
    /// after it, each at once.
    pub fn renew(&self, identity: &Identity, days: u32, key_type: KeyType) -> Result<Issued, CaError> {
        let (certificate, key) = self.issued_paths(&identity.to_string());
        if !certificate.exists() {
            return Err(CaError::NothingToRenew { path: certificate });
        }
        let old = certificate::read_certificates("certificate", &certificate)?;
        let old = Leaf::parse(&old[0])
            .map_err(|source| MaterialError::Parse { path: certificate.clone(), source })?;
        let alternative_names =
            old.dns_names.into_iter().chain(old.addresses.iter().map(IpAddr::to_string)).collect();
        let order = Order { identity: identity.clone(), alternative_names, days, key_type };
        let (pair, chain, leaf) = self.sign(&order)?;
        replace(&key, &pair.serialize_pem(), 0o600)?;
        replace(&certificate, &chain, 0o644)?;
        Ok(Issued { certificate, key, leaf })
    }

    /// The new key, the leaf with the intermediate as PEM, and what the leaf says.
    fn sign(&self, order: &Order) -> Result<(KeyPair, String, Leaf), CaError> {
        let authorities = self.authorities()?;
        let intermediate = &authorities[0];
        let issuer_pair = self.issuer_pair(intermediate)?;
        let pair = order.key_type.generate()?;
        let now = OffsetDateTime::now_utc();
        let ends = examine::not_after(intermediate).unwrap_or_default();
        let days_left = (ends - now.unix_timestamp()).div_euclid(86_400);
        if days_left < 1 {
            return Err(CaError::IntermediateEnds { path: self.chain_path(), days: days_left });
        }
        let mut params = leaf_params(order)?;
        params.not_after = now + Duration::days(i64::from(order.days).min(days_left));

        let issuer = Issuer::from_ca_cert_der(intermediate, issuer_pair).map_err(make("a signature"))?;
        let signed = params.signed_by(&pair, &issuer).map_err(make("the certificate"))?;

        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(authorities.iter().cloned());
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
        let path = self.chain_path();
        let trusted =
            std::fs::read_to_string(&path).map_err(|source| CaError::File { what: "read", path, source })?;
        Ok((pair, format!("{}{}", signed.pem(), first_block(&trusted)), leaf))
    }

    /// The certificates of `ca-chain.pem`, the issuing one first.
    fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let chain = self.chain_path();
        if !chain.exists() {
            let key = self.intermediate_key_path();
            return Err(match key.exists() {
                true => CaError::HalfMade { found: key, missing: chain },
                false => CaError::NoCa { dir: self.dir.clone(), missing: chain },
            });
        }
        Ok(certificate::read_certificates("trust bundle", &chain)?)
    }

    /// The intermediate's key, after a check that it is the intermediate's.
    fn issuer_pair(&self, intermediate: &CertificateDer<'_>) -> Result<KeyPair, CaError> {
        let path = self.intermediate_key_path();
        let der = certificate::read_key(&path)?;
        let pair = KeyPair::try_from(&der).map_err(make("a signature with the intermediate's key"))?;
        match examine::public_key(intermediate) == Some(pair.subject_public_key_info()) {
            true => Ok(pair),
            false => Err(CaError::OtherKey { key: path, certificate: self.chain_path() }),
        }
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

fn authority(name: &str, days: i64, constraints: BasicConstraints) -> Result<CertificateParams, CaError> {
    let mut params = dated(name)?;
    params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
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

fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Make { what, source }
}

/// The first certificate of a PEM file, with its lines.
fn first_block(text: &str) -> &str {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----\n";
    let from = text.find(BEGIN).unwrap_or(0);
    let length = text[from..].find(END).map_or(text.len() - from, |at| at + END.len());
    &text[from..from + length]
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
