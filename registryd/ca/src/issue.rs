//! Issuing and renewing leaves.

use std::net::IpAddr;
use std::path::Path;

use mesh_shared::certificate::{self, Leaf, Material, MaterialError};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use mesh_shared::revocation::InForce;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{ServerName, UnixTime};
use time::{Duration, OffsetDateTime};

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
        let old_certificate = Certificate::of(&old[0]);
        let old_leaf = Leaf::parse(&old[0])
            .map_err(|source| MaterialError::Parse { path: certificate.clone(), source })?;
        let alternative_names =
            old_leaf.dns_names.into_iter().chain(old_leaf.addresses.iter().map(IpAddr::to_string)).collect();
        let key_type = key_type.or(old_certificate.key_type).unwrap_or_default();
        let order = Order { identity: identity.clone(), alternative_names, days, key_type };
        let (pair, chain, leaf) = self.sign(&order)?;
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
    fn sign(&self, order: &Order) -> Result<(KeyPair, String, Leaf), CaError> {
        let authorities = self.authorities()?;
        let (intermediate, issuer) = self.signer(&authorities)?;
        let pair = order.key_type.generate()?;
        let now = OffsetDateTime::now_utc();
        let days_left = intermediate.certificate.days_left(UnixTime::now());
        if days_left < 1 {
            let when = ends(days_left);
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when });
        }
        let mut params = leaf_params(order)?;
        params.not_after = now + Duration::days(i64::from(order.days).min(days_left));
        let signed = params.signed_by(&pair, &issuer).map_err(make("the certificate"))?;

        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(
            authorities.iter().filter_map(|authority| authority.certificate.der.clone()),
        );
        let (path, _) = self.issued_paths(&order.identity.to_string());
        let leaf = Leaf::parse(signed.der())
            .map_err(|source| MaterialError::Parse { path: path.clone(), source })?;
        let material = Material {
            cert_path: path,
            chain: vec![signed.der().clone()],
            leaf: leaf.clone(),
            roots: roots.into(),
            crls: InForce::default(),
        };
        accepted(&material, UnixTime::now()).map_err(CaError::SelfCheck)?;
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

/// Whether peers accept the certificate, in the roles that its identity has.
pub(crate) fn accepted(material: &Material, now: UnixTime) -> Result<(), MaterialError> {
    match &material.leaf.identity {
        Identity::Node(node) => material.accepted_by_peers(node, now),
        Identity::Agent(..) | Identity::Device(_) => material.accepted_as_client(now),
    }
}
