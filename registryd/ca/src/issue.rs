//! Issuing and renewing leaves.

use std::net::IpAddr;
use std::path::Path;

use mesh_shared::certificate::{self, Coverage, Leaf, Material, MaterialError, TrustBundle};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::dated;
use crate::certificate::{Certificate, ends};
use crate::error::{CaError, make};
use crate::files::{self, make_dir, replace, write_new};
use crate::key::KeyType;
use crate::model::{Ca, Issued, Order};

impl Ca {
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
        let (pair, chain, leaf) = self.sign(order, &Kept::default())?;
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
        let old_certificate = Certificate::of(&old[0]);
        let old_leaf = Leaf::parse(&old[0])
            .map_err(|source| MaterialError::Parse { path: certificate.clone(), source })?;
        let kept = match old_leaf.identity == *identity {
            true => Kept::of(&old[0]),
            false => Kept::default(),
        };
        let names = old_leaf.dns_names.into_iter().chain(old_leaf.addresses.iter().map(IpAddr::to_string));
        let key_type = key_type.or(old_certificate.key_type).unwrap_or_default();
        let order = Order { identity: identity.clone(), alternative_names: names.collect(), days, key_type };
        let (pair, chain, leaf) = self.sign(&order, &kept)?;
        self.keep_superseded(&certificate, &old_certificate)?;
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
        let lasts = self.signer(&authorities)?.0.certificate.days_left(UnixTime::now());
        if lasts <= days_left && lasts < i64::from(days) {
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when: ends(lasts) });
        }
        self.renew(identity, days, key_type)
    }

    fn keep_superseded(&self, path: &Path, certificate: &Certificate) -> Result<(), CaError> {
        let content = files::read(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let serial = certificate.serial_text();
        make_dir(&self.superseded_dir(), 0o755)?;
        match write_new(&self.superseded_dir().join(format!("{stem}-{serial}.crt")), &content, 0o644) {
            // An earlier renewal was interrupted right behind this.
            Err(CaError::Exists { .. }) => Ok(()),
            kept => kept,
        }
    }

    /// The new key, the leaf with the intermediate as PEM, and what the leaf says.
    fn sign(&self, order: &Order, kept: &Kept) -> Result<(KeyPair, String, Leaf), CaError> {
        let authorities = self.authorities()?;
        let (intermediate, issuer) = self.signer(&authorities)?;
        let pair = order.key_type.generate()?;
        let now = OffsetDateTime::now_utc();
        let days_left = intermediate.certificate.days_left(UnixTime::now());
        if days_left < 1 {
            let when = ends(days_left);
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when });
        }
        let mut params = self.leaf_params(order, kept)?;
        params.not_after = now + Duration::days(i64::from(order.days).min(days_left));
        let signed = params.signed_by(&pair, &issuer).map_err(make("the certificate"))?;

        let (path, _) = self.issued_paths(&order.identity.to_string());
        let leaf = Leaf::parse(signed.der())
            .map_err(|source| MaterialError::Parse { path: path.clone(), source })?;
        let material = Material {
            cert_path: path,
            chain: vec![signed.der().clone()],
            leaf: leaf.clone(),
            bundle: TrustBundle::of(&self.chain_path(), &self.located()?)?.into(),
            crls: Vec::new(),
            coverage: Coverage::Optional,
        };
        accepted(&material, UnixTime::now()).map_err(CaError::SelfCheck)?;
        // A peer that trusts the root alone needs the intermediate too.
        Ok((pair, format!("{}{}", signed.pem(), intermediate.pem), leaf))
    }
}

/// What a renewal takes over from the certificate before, apart from host names.
#[derive(Default)]
struct Kept {
    /// The subject as it stood: RivetOS writes `O`, for devices `OU=client`, and `CN=<node>.mesh`.
    subject: Option<DistinguishedName>,
    /// Alternative names of other kinds.
    names: Vec<SanType>,
    renewal: bool,
}

impl Kept {
    fn of(old: &CertificateDer<'_>) -> Self {
        let mut kept = Self { renewal: true, ..Self::default() };
        let Ok((_, old)) = X509Certificate::from_der(old) else { return kept };
        let mut subject = DistinguishedName::new();
        for attribute in old.subject().iter_attributes() {
            let oid: Option<Vec<u64>> = attribute.attr_type().iter().map(Iterator::collect);
            if let (Some(oid), Ok(value)) = (oid, attribute.as_str()) {
                subject.push(DnType::from_oid(&oid), value);
            }
        }
        kept.subject = Some(subject);
        let names = old.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            let name = match name {
                GeneralName::URI(uri) => (*uri).try_into().map(SanType::URI),
                GeneralName::RFC822Name(name) => (*name).try_into().map(SanType::Rfc822Name),
                _ => continue,
            };
            kept.names.extend(name.ok());
        }
        kept
    }
}

impl Ca {
    fn leaf_params(&self, order: &Order, kept: &Kept) -> Result<CertificateParams, CaError> {
        let mut params = dated(&order.identity.to_string())?;
        if let Some(subject) = &kept.subject {
            params.distinguished_name = subject.clone();
        }
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
                (Some(named), Some(node)) if self.is_of_other(&named, node, kept.renewal) => {
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
        params.subject_alt_names.extend(kept.names.iter().cloned());
        Ok(params)
    }

    /// Whether a name below `.mesh` belongs to another node. RivetOS gives each node two names more for its services, and a
    /// renewal takes over what was signed before, unless there is a node of that name.
    fn is_of_other(&self, named: &NodeName, node: &NodeName, renewal: bool) -> bool {
        let is_service = ["-mcp", "-runtime-rpc"]
            .iter()
            .any(|service| named.as_str().strip_suffix(service) == Some(node.as_str()));
        named != node && (!(is_service || renewal) || self.issued_paths(named.as_str()).0.exists())
    }
}

/// Whether peers accept the certificate, in the roles that its identity has.
pub(crate) fn accepted(material: &Material, now: UnixTime) -> Result<(), MaterialError> {
    match &material.leaf.identity {
        Identity::Node(node) => material.accepted_by_peers(node, now),
        Identity::Agent(..) | Identity::Device(_) => material.accepted_as_client(now),
    }
}
