//! Throw-away certificate authorities in the layout of the reference document.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A root and the intermediate that issues.
pub struct Ca {
    owner: String,
    root_pem: String,
    intermediate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf should say. [`Spec::node`] is a good one; the rest is changed for bad ones.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The common name; `None`: a subject without one.
    pub cn: Option<String>,
    /// DNS alternative names.
    pub dns: Vec<String>,
    /// Address alternative names.
    pub ips: Vec<IpAddr>,
    /// URI alternative names.
    pub uris: Vec<String>,
    /// First year of validity.
    pub from: i32,
    /// Year in which it ends.
    pub until: i32,
    /// Whether it may be used as a client.
    pub client: bool,
    /// Whether it may be used as a server.
    pub server: bool,
}

impl Spec {
    /// `CN=<node>`, `SAN=<node>.mesh`, for both sides, valid now.
    pub fn node(node: &str) -> Self {
        Self {
            cn: Some(node.into()),
            dns: vec![format!("{node}.mesh")],
            ips: Vec::new(),
            uris: Vec::new(),
            from: 2024,
            until: 2090,
            client: true,
            server: true,
        }
    }
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf in PEM.
    pub cert_pem: String,
    /// The leaf and the intermediate in PEM.
    pub chain_pem: String,
    /// The key in PEM (PKCS#8).
    pub key_pem: String,
    /// The leaf's serial number.
    pub serial: Vec<u8>,
}

impl Issued {
    /// The leaf and the intermediate.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain_pem.as_bytes()).map(Result::unwrap).collect()
    }

    /// The leaf alone.
    pub fn leaf(&self) -> Vec<CertificateDer<'static>> {
        self.chain().into_iter().take(1).collect()
    }

    /// The key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap()
    }
}

impl Ca {
    /// Makes a root and an intermediate that no other CA is named like.
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        Self::named(&format!("Test Mesh {}", MADE.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes another CA that calls itself the same.
    pub fn namesake(&self) -> Self {
        Self::named(&self.owner)
    }

    fn named(owner: &str) -> Self {
        let authority = |name: String, path_length| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.use_authority_key_identifier_extension = true;
            (params, KeyPair::generate().unwrap())
        };
        let (root_params, root_key) = authority(format!("{owner} Root"), 1);
        let root = root_params.self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(root_params, root_key);
        let (params, key) = authority(format!("{owner} Intermediate"), 0);
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        Self {
            owner: owner.into(),
            root_pem: root.pem(),
            intermediate_pem: intermediate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Issues a leaf.
    pub fn issue(&self, spec: &Spec) -> Issued {
        self.sign(params(spec))
    }

    /// Issues a good leaf for an agent of a node.
    pub fn agent(&self, agent: &str, node: &str) -> Issued {
        self.issue(&Spec {
            cn: Some(format!("{agent}@{node}")),
            dns: Vec::new(),
            uris: vec![format!("spiffe://mesh/agent/{agent}@{node}")],
            server: false,
            ..Spec::node(node)
        })
    }

    /// Issues a good leaf for a node that may host these agents.
    pub fn hosting(&self, node: &str, agents: &[&str]) -> Issued {
        let agents = agents.iter().map(|agent| format!("spiffe://mesh/agent/{agent}@{node}"));
        let own = format!("spiffe://mesh/node/{node}");
        self.issue(&Spec { uris: [own].into_iter().chain(agents).collect(), ..Spec::node(node) })
    }

    /// Issues a good leaf for a node that ends so long from now.
    pub fn ending(&self, node: &str, life: Duration) -> Issued {
        let mut params = params(&Spec::node(node));
        params.not_after = (SystemTime::now() + life).into();
        self.sign(params)
    }

    /// Issues a good leaf for a node that was made so long ago and ends so long from now.
    pub fn made(&self, node: &str, ago: Duration, life: Duration) -> Issued {
        let mut params = params(&Spec::node(node));
        params.not_before = (SystemTime::now() - ago).into();
        params.not_after = (SystemTime::now() + life).into();
        self.sign(params)
    }

    /// Issues a leaf for a node that ended so long ago and was good until then.
    pub fn ended(&self, node: &str, ago: Duration) -> Issued {
        let mut params = params(&Spec::node(node));
        params.not_after = (SystemTime::now() - ago).into();
        self.sign(params)
    }

    /// Issues whatever these say, with a new key and a new serial number.
    pub fn sign(&self, mut params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        // Positive, whatever the hash.
        let serial = (RandomState::new().hash_one(key.public_key_raw()) >> 1).to_be_bytes().to_vec();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            cert_pem: certificate.pem(),
            chain_pem: certificate.pem() + &self.intermediate_pem,
            key_pem: key.serialize_pem(),
            serial,
        }
    }

    /// Issues a good leaf for the node that a signing request (PEM) names, and the key that it is for; gives leaf and
    /// intermediate.
    pub fn sign_request(&self, csr_pem: &str, life: Duration) -> String {
        let asked = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let cn = asked.params.distinguished_name.get(&DnType::CommonName).cloned().unwrap();
        let DnValue::Utf8String(cn) = cn else { panic!("{cn:?}") };
        let mut params = params(&Spec::node(&cn));
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + life).into();
        params.signed_by(&asked.public_key, &self.issuer).unwrap().pem() + &self.intermediate_pem
    }

    /// Issues a good leaf for a node.
    pub fn node(&self, node: &str) -> Issued {
        self.issue(&Spec::node(node))
    }

    /// `ca-chain.pem`: intermediate and root.
    pub fn bundle_pem(&self) -> String {
        format!("{}{}", self.intermediate_pem, self.root_pem)
    }

    /// A revocation list of the intermediate with these certificates in it.
    pub fn crl_pem(&self, revoked: &[&Issued]) -> String {
        self.crl_pem_until(2090, revoked)
    }

    /// A revocation list that ends with the beginning of a year.
    pub fn crl_pem_until(&self, year: i32, revoked: &[&Issued]) -> String {
        self.list(revoked, |list| list.next_update = date_time_ymd(year, 1, 1))
    }

    /// A revocation list that ends so long from now.
    pub fn crl_pem_ending(&self, life: Duration, revoked: &[&Issued]) -> String {
        self.list(revoked, |list| list.next_update = (SystemTime::now() + life).into())
    }

    /// A revocation list that was made at a moment.
    pub fn crl_pem_made(&self, at: SystemTime, revoked: &[&Issued]) -> String {
        self.list(revoked, |list| list.this_update = at.into())
    }

    fn list(&self, revoked: &[&Issued], change: impl FnOnce(&mut CertificateRevocationListParams)) -> String {
        let revoked_certs = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&issued.serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let mut list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut list);
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// The bundle as anchors.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.bundle_pem().as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        roots
    }

    /// Writes the bundle where the reference document has it below `folder`.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("intermediate/ca-chain.pem");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, self.bundle_pem()).unwrap();
        path
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

/// A leaf that nobody vouches for.
pub fn self_signed(spec: &Spec) -> Issued {
    let key = KeyPair::generate().unwrap();
    let pem = params(spec).self_signed(&key).unwrap().pem();
    Issued { cert_pem: pem.clone(), chain_pem: pem, key_pem: key.serialize_pem(), serial: Vec::new() }
}

/// What a certificate says, for whoever is to sign it.
pub fn params(spec: &Spec) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test Mesh");
    if let Some(cn) = &spec.cn {
        params.distinguished_name.push(DnType::CommonName, cn.as_str());
    }
    params.subject_alt_names =
        spec.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().unwrap())).collect();
    params.subject_alt_names.extend(spec.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params
        .subject_alt_names
        .extend(spec.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())));
    params.not_before = date_time_ymd(spec.from, 1, 1);
    params.not_after = date_time_ymd(spec.until, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if spec.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if spec.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params
}
