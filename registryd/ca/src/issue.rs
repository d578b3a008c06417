//! Issuing and renewing leaves.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_shared::certificate::{self, Leaf, LeafError, MaterialError, TrustBundle};
use mesh_shared::identity::Identity;
use mesh_shared::material::{Coverage, Material};
use mesh_shared::name::NodeName;
use mesh_shared::revocation;
use mesh_shared::spiffe::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::dated;
use crate::certificate::{Certificate, ends};
use crate::change::{Change, put_pair};
use crate::error::{CaError, make};
use crate::files::{self, make_dir, replace, write_new};
use crate::model::{Ca, Issued, Order, Renewal, Signed};
use crate::record::{Event, Issuance, Origin};
use crate::request::{RequestError, SigningRequest};
use crate::rivetos;
use crate::serving::ENROLMENT_NAME;

impl Ca {
    /// Issues a certificate with a new key, having checked it as peers will.
    ///
    /// # Errors
    /// No usable CA, an order that makes no sense, or files that exist already.
    pub fn issue(&self, order: &Order) -> Result<Issued, CaError> {
        let mut change = self.change()?;
        let (certificate, key) = self.issued_paths(&order.identity.to_string());
        match (certificate.exists(), key.exists()) {
            (false, false) => {}
            (false, true) => return Err(CaError::HalfIssued { found: key, missing: certificate }),
            (true, _) => {
                return Err(CaError::Exists {
                    path: certificate,
                    hint: "; `meshctl ca renew` issues it again",
                });
            }
        }
        let pair = order.key_type.generate()?;
        let made = self.leaf(order, &Kept::default(), &pair)?;
        self.record_issue(&mut change, &made, Origin::Issued)?;
        make_dir(&self.dir.join("issued"), 0o755)?;
        put_pair(&certificate, &made.chain, &key, &pair.serialize_pem())?;
        Ok(Issued { certificate, key, leaf: made.leaf })
    }

    /// Issues what `identity` has once more: the same names and agents, a new key, new dates.
    ///
    /// # Errors
    /// As [`Ca::issue`], but the certificate must exist, and its key must have been made here. A copy of the certificate is
    /// kept. Certificate and key work together at every instant.
    pub fn renew(&self, identity: &Identity, renewal: &Renewal) -> Result<Issued, CaError> {
        let mut change = self.change()?;
        let (certificate, _) = self.issued_paths(&identity.to_string());
        if !certificate.exists() {
            return Err(CaError::NothingToRenew { path: certificate });
        }
        let old = certificate::read_certificates("certificate", &certificate)?.swap_remove(0);
        self.renew_one(&mut change, identity, renewal, &old)
    }

    /// [`Ca::renew`], unless the certificate does not end within so many days (`None`; somebody else may just have renewed
    /// it), or the new one would not last longer.
    ///
    /// # Errors
    /// As there, or the intermediate ends as soon.
    pub fn renew_ending(
        &self,
        identity: &Identity,
        renewal: &Renewal,
        within_days: u32,
    ) -> Result<Option<Issued>, CaError> {
        let mut change = self.change()?;
        let (certificate, _) = self.issued_paths(&identity.to_string());
        let old = certificate::read_certificates("certificate", &certificate)?.swap_remove(0);
        let now = UnixTime::now();
        let days_left = Certificate::of(&old).days_left(now);
        if days_left >= i64::from(within_days) {
            return Ok(None);
        }
        let lasts = self.signer(&change.authorities)?.0.certificate.days_left(now);
        if lasts <= days_left && lasts < i64::from(renewal.days) {
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when: ends(lasts) });
        }
        self.renew_one(&mut change, identity, renewal, &old).map(Some)
    }

    fn renew_one(
        &self,
        change: &mut Change<'_>,
        identity: &Identity,
        renewal: &Renewal,
        old: &CertificateDer<'_>,
    ) -> Result<Issued, CaError> {
        let (certificate, key) = self.issued_paths(&identity.to_string());
        if change.index.current(identity).is_some_and(|entry| entry.issuance.why == Origin::Signed) {
            return Err(CaError::KeyElsewhere { name: identity.clone() });
        }
        let old_certificate = Certificate::of(old);
        let key_type = renewal.key_type.or(old_certificate.key_type).unwrap_or_default();
        let (mut order, kept) = Kept::of(old, identity)
            .map_err(|source| MaterialError::Parse { path: certificate.clone(), source })?;
        (order.days, order.key_type) = (renewal.days, key_type);
        if let Some(agents) = &renewal.agents {
            order.agents.clone_from(agents);
        }
        let pair = key_type.generate()?;
        let made = self.leaf(&order, &kept, &pair)?;
        self.record_issue(change, &made, Origin::Renewed)?;
        self.keep_superseded(&certificate, &old_certificate)?;
        put_pair(&certificate, &made.chain, &key, &pair.serialize_pem())?;
        Ok(Issued { certificate, key, leaf: made.leaf })
    }

    /// Signs a certificate for the key of a request. Names, agents and dates are the order's; of the request only the key
    /// counts, and its common name, which must name the same identity.
    ///
    /// A copy of an earlier certificate of that name is kept, and its key, if that is here, is moved to it.
    ///
    /// # Errors
    /// No usable CA, an order that makes no sense, a request of somebody else, or of a key that had a certificate before.
    pub fn sign(&self, request: &SigningRequest, order: &Order) -> Result<Signed, CaError> {
        self.sign_request(&mut self.change()?, request, order, &Kept::default())
    }

    /// Signs a certificate for the key of a request whose sender has shown that it holds `old`, a certificate of the same
    /// identity, which [`Ca::accepted`] has judged. It has everything that was issued last under that name: what an operator
    /// took away since does not come back.
    ///
    /// # Errors
    /// As [`Ca::sign`]; or `old` was revoked meanwhile.
    pub fn sign_renewal(
        &self,
        request: &SigningRequest,
        old: &CertificateDer<'_>,
        days: u32,
    ) -> Result<Signed, CaError> {
        let mut change = self.change()?;
        let held = Certificate::of(old);
        if change.lists.find(&held.issuer, &held.serial).is_some() {
            return Err(CaError::Revoked { name: request.identity().clone() });
        }
        let last = self.issued_before(request.identity())?;
        let (mut order, kept) = Kept::of(last.as_ref().unwrap_or(old), request.identity())
            .map_err(|source| MaterialError::Parse { path: "(the certificate to renew)".into(), source })?;
        order.days = days;
        self.sign_request(&mut change, request, &order, &kept)
    }

    fn sign_request(
        &self,
        change: &mut Change<'_>,
        request: &SigningRequest,
        order: &Order,
        kept: &Kept,
    ) -> Result<Signed, CaError> {
        if *request.identity() != order.identity {
            let (asked, wanted) = (request.identity().clone(), order.identity.clone());
            return Err(CaError::OtherIdentity { asked, wanted });
        }
        if change.index.has_key(&request.key_digest()) {
            return Err(CaError::KeyUsed);
        }
        let made = self.leaf(order, kept, request.public_key())?;
        if made.certificate.public_key != request.spki() {
            return Err(RequestError::Key.into());
        }
        self.record_issue(change, &made, Origin::Signed)?;
        let (certificate, key) = self.issued_paths(&order.identity.to_string());
        make_dir(&self.dir.join("issued"), 0o755)?;
        if certificate.exists() {
            let old = certificate::read_certificates("certificate", &certificate)?.swap_remove(0);
            let kept = self.keep_superseded(&certificate, &Certificate::of(&old))?;
            if key.exists() {
                files::rename(&key, &kept.with_extension("key"))?;
            }
        }
        replace(&certificate, &made.chain, 0o644)?;
        Ok(Signed { certificate, chain_pem: made.chain, leaf: made.leaf })
    }

    /// The certificate that `identity` has here, if any.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn issued_before(&self, identity: &Identity) -> Result<Option<CertificateDer<'static>>, CaError> {
        let (path, _) = self.issued_paths(&identity.to_string());
        match path.exists() {
            true => Ok(Some(certificate::read_certificates("certificate", &path)?.swap_remove(0))),
            false => Ok(None),
        }
    }

    /// Whether peers accept a certificate of this CA now (the leaf first, then its chain): issued here, not ended, not
    /// revoked. Gives what the leaf says.
    ///
    /// # Errors
    /// They do not, or the CA cannot tell. Fails closed: also where the revocation list has ended.
    pub fn accepted(&self, chain: Vec<CertificateDer<'static>>) -> Result<Leaf, CaError> {
        let cert_path = PathBuf::from("(the certificate in use)");
        let leaf = chain.first().ok_or(LeafError::Der("there is none".into())).and_then(Leaf::parse);
        let leaf = leaf.map_err(|source| MaterialError::Parse { path: cert_path.clone(), source })?;
        let bundle = TrustBundle::of(&self.chain_path(), &self.located()?)?.into();
        let mut crls = Vec::new();
        for path in self.crl_paths().iter().filter(|path| path.exists()) {
            crls.extend(revocation::read(path)?);
        }
        // Where nothing was ever revoked, there are no lists.
        let coverage = if crls.is_empty() { Coverage::Optional } else { Coverage::Required };
        let material = Material { cert_path, chain, leaf, bundle, crls, coverage };
        material.accepted_as_client(UnixTime::now())?;
        Ok(material.leaf)
    }

    /// Keeps a copy of a certificate that is about to be replaced; gives where.
    fn keep_superseded(&self, path: &Path, certificate: &Certificate) -> Result<PathBuf, CaError> {
        let content = files::read(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let serial = certificate.serial_text();
        make_dir(&self.superseded_dir(), 0o755)?;
        let kept = self.superseded_dir().join(format!("{stem}-{serial}.crt"));
        match write_new(&kept, &content, 0o644) {
            // An earlier renewal was interrupted right behind this.
            Err(CaError::Exists { .. }) => Ok(kept),
            outcome => outcome.map(|()| kept),
        }
    }

    /// Before a certificate leaves the CA.
    fn record_issue(&self, change: &mut Change<'_>, made: &Made, why: Origin) -> Result<(), CaError> {
        let at = UnixTime::now().as_secs() as i64;
        let issuance = Issuance::of(&made.certificate, &made.leaf, why, at, &self.actor());
        rivetos::mark_issued(&self.dir, &issuance)?;
        change.record(&[Event::Issued(issuance)])
    }

    /// A leaf for this key.
    fn leaf(&self, order: &Order, kept: &Kept, key: &impl PublicKeyData) -> Result<Made, CaError> {
        let authorities = self.authorities()?;
        let (intermediate, issuer) = self.signer(&authorities)?;
        let now = OffsetDateTime::now_utc();
        let days_left = intermediate.certificate.days_left(UnixTime::now());
        if days_left < 1 {
            let when = ends(days_left);
            return Err(CaError::IntermediateEnds { path: self.chain_path(), when });
        }
        let mut params = self.leaf_params(order, kept)?;
        params.not_after = now + Duration::days(i64::from(order.days).min(days_left));
        let signed = params.signed_by(key, &issuer).map_err(make("the certificate"))?;

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
        material.accepted_in_its_role(UnixTime::now()).map_err(CaError::SelfCheck)?;
        // A peer that trusts the root alone needs the intermediate too.
        let chain = format!("{}{}", signed.pem(), intermediate.pem);
        Ok(Made { chain, leaf, certificate: Certificate::of(signed.der()) })
    }
}

impl Order {
    /// An order of what `old` has, for `identity`; of a certificate of somebody else, only the names count.
    ///
    /// # Errors
    /// It cannot be parsed.
    pub fn like(old: &CertificateDer<'_>, identity: &Identity) -> Result<Self, CaError> {
        let parsed = Kept::of(old, identity);
        let path = "(the certificate of before)".into();
        Ok(parsed.map_err(|source| MaterialError::Parse { path, source })?.0)
    }
}

/// A leaf that was signed.
struct Made {
    /// It and the intermediate, in PEM.
    chain: String,
    leaf: Leaf,
    certificate: Certificate,
}

/// What a renewal takes over from the certificate before, apart from what an order can say.
#[derive(Default)]
struct Kept {
    /// The subject as it stood: RivetOS writes `O`, for devices `OU=client`, and `CN=<node>.mesh`.
    subject: Option<DistinguishedName>,
    /// Alternative names of other kinds.
    names: Vec<SanType>,
    renewal: bool,
}

impl Kept {
    /// What to order, and what to keep next to it, so that `identity` gets what it has in `old`. Of a certificate of somebody
    /// else, only the names are taken.
    fn of(old: &CertificateDer<'_>, identity: &Identity) -> Result<(Order, Self), LeafError> {
        let leaf = Leaf::parse(old)?;
        let names = leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(IpAddr::to_string));
        let mut order = Order::new(identity.clone(), names.collect());
        let mut kept = Self { renewal: true, ..Self::default() };
        order.agents = leaf.agents();
        let (false, Ok((_, old))) = (leaf.identity != *identity, X509Certificate::from_der(old)) else {
            order.agents.clear();
            return Ok((order, Self::default()));
        };
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
                GeneralName::URI(uri) => match uri.parse::<SpiffeId>().ok().and_then(|id| id.identity()) {
                    // Written again, in the CA's own trust domain.
                    Some(named) if named == *identity => continue,
                    Some(Identity::Agent(_, node)) if *identity == Identity::Node(node.clone()) => continue,
                    _ => (*uri).try_into().map(SanType::URI),
                },
                GeneralName::RFC822Name(name) => (*name).try_into().map(SanType::Rfc822Name),
                _ => continue,
            };
            kept.names.extend(name.ok());
        }
        Ok((order, kept))
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
            if name.trim_end_matches('.').eq_ignore_ascii_case(ENROLMENT_NAME) {
                return Err(CaError::NameOfEnrolment(name.clone()));
            }
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
        for id in self.spiffe_ids(order)? {
            let bad = || CaError::AlternativeName(id.to_string());
            let uri = id.to_string().try_into().map(SanType::URI).map_err(|_| bad())?;
            if !params.subject_alt_names.contains(&uri) {
                params.subject_alt_names.push(uri);
            }
        }
        params.subject_alt_names.extend(kept.names.iter().cloned());
        Ok(params)
    }

    /// Who it is, and of a node, which agents it may host.
    fn spiffe_ids(&self, order: &Order) -> Result<Vec<SpiffeId>, CaError> {
        let domain = self.trust_domain()?;
        let mut ids = vec![SpiffeId::of(&domain, &order.identity)];
        match &order.identity {
            Identity::Node(node) => {
                ids.extend(order.agents.iter().map(|agent| SpiffeId::of_hosted(&domain, agent, node)));
            }
            other if !order.agents.is_empty() => return Err(CaError::NoHost(other.clone())),
            _ => {}
        }
        Ok(ids)
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
