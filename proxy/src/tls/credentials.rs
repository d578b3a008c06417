//! Certificate, key, trust bundle and revocation lists as one immutable snapshot.
//!
//! A snapshot is built whole, judged by the verifiers that peers use, and only then published; a failed
//! reload leaves the one in use as it is. Each handshake sees exactly one snapshot.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use mesh_shared::certificate::{Leaf, MaterialError, TrustBundle};
use mesh_shared::config::{Config, Group, Tls, TlsVersion};
use mesh_shared::material::{Coverage, Material};
use mesh_shared::spiffe::TrustDomain;
use mesh_shared::{AgentName, NodeName};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::UnixTime;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::sync::{Notify, watch};

use crate::metrics::METRICS;
use crate::tls::fingerprint::Fingerprint;
use crate::tls::presented::{self, Agents, Calls, Presented};
pub use crate::tls::presented::{ALPN_H2, ALPN_HTTP_1_1};
use crate::tls::revocation::{self, Lists, Shared};
use crate::tls::verify::{ClientVerifier, ServerVerifier};

/// Something that an operator has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What it is about: the same for as long as it is the same matter.
    pub about: String,
    /// A sentence.
    pub text: String,
}

/// From so many seconds before its end on, a revocation list deserves a warning.
const CRL_ENDS_SOON: i64 = 3 * 86_400;

/// The same for an agent's certificate.
const AGENT_ENDS_SOON: i64 = 86_400;

/// Everything both directions need for TLS.
pub struct Credentials {
    /// For peers that call in: a client certificate is required and verified in the handshake.
    pub server: Arc<ServerConfig>,
    /// For calls to peers as this node.
    pub node: Presented,
    /// For calls to peers as an agent of this node.
    agents: Agents,
    /// The trust domain in which certificates say which agents a node may host.
    pub trust_domain: TrustDomain,
    /// Judges peers that call in, also those that are connected already.
    pub clients: Arc<ClientVerifier>,
    /// Judges peers that are called, also those that are connected already.
    pub servers: Arc<ServerVerifier>,
    /// When the first revocation list ends, epoch seconds; `None`: there are none.
    pub crl_end: Option<i64>,
    /// What is wrong with the files although they can be used, each in a sentence.
    pub problems: Vec<String>,
    /// Those of them that stand until the files are read again.
    of_files: Vec<String>,
    /// When this snapshot was made, epoch seconds.
    pub made: i64,
    /// The content of the files.
    pub fingerprint: Fingerprint,
    /// What peers may have of the revocation lists.
    pub lists: Shared,
    /// The public files.
    material: Arc<Material>,
    key: Arc<CertifiedKey>,
    tls: Tls,
    /// End of this node's own certificate's validity, epoch seconds.
    pub not_after: i64,
}

/// Why no snapshot could be made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file, or what it holds.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// rustls takes none of it; the files are individually fine.
    #[error("cannot set up TLS with these certificates: {0}")]
    Tls(String),
}

impl Credentials {
    /// Reads the configured files, and adds the revocation lists that are known from elsewhere.
    ///
    /// # Errors
    /// Whatever would make peers refuse this node, or this node unable to verify peers. Fails closed.
    pub fn load(config: &Config, lists: &Lists) -> Result<Self, CredentialsError> {
        match Self::load_once(config, lists) {
            // Certificate and key are two files: the one may have been read before the two were replaced, the other after.
            Err(CredentialsError::Material(MaterialError::KeyMismatch { .. })) => {
                Self::load_once(config, lists)
            }
            loaded => loaded,
        }
    }

    fn load_once(config: &Config, lists: &Lists) -> Result<Self, CredentialsError> {
        // Before anything is read: what changes meanwhile is noticed at the next look.
        let fingerprint = Fingerprint::of(config);
        let mut material = Material::load(config)?;
        let mut of_files = revocation::add_found(config, &mut material);
        of_files.extend(revocation::join(&mut material, lists));
        material.names_node(&config.mesh.node_name)?;
        material.accepted_by_peers(&config.mesh.node_name, UnixTime::now())?;
        let key = Arc::new(material.with_key(&config.mesh.tls.key_path)?);
        let domain = config.mesh.trust_domain.clone();
        let agents = |material: &_, calls: &_| presented::agents(config, material, calls);
        let made = Self::of(
            material,
            key,
            config.proxy.tls.clone(),
            domain,
            (fingerprint, of_files),
            Vec::new(),
            agents,
        )?;
        lists.keep(&made.material);
        Ok(made)
    }

    /// The same with the revocation lists that are known by now. The files are not read: they may not fit together at
    /// the moment, and a revocation does not wait for them.
    ///
    /// # Errors
    /// Lists that are not understood.
    pub fn with_lists(&self, node: &NodeName, lists: &Lists) -> Result<Self, CredentialsError> {
        let mut material = Material::clone(&self.material);
        let mut since = revocation::join(&mut material, lists);
        // Whoever is revoked itself still refuses others that are.
        if let Err(error) = material.accepted_by_peers(node, UnixTime::now()) {
            since.push(format!("peers refuse this node: {error}"));
        }
        material.crls = material.revocations(UnixTime::now()).known();
        let made = self.with(material, self.key.clone(), since)?;
        lists.keep(&made.material);
        Ok(made)
    }

    /// The same with another certificate, as it would be if that were in the files.
    ///
    /// # Errors
    /// A certificate that cannot be read, or that peers would not accept.
    pub fn with_leaf(&self, node: &NodeName, key: Arc<CertifiedKey>) -> Result<Self, CredentialsError> {
        let mut material = Material::clone(&self.material);
        material.chain.clone_from(&key.cert);
        let path = material.cert_path.clone();
        let leaf = key.end_entity_cert().map_err(|error| CredentialsError::Tls(error.to_string()))?;
        material.leaf = Leaf::parse(leaf).map_err(|source| MaterialError::Parse { path, source })?;
        material.names_node(node)?;
        material.accepted_by_peers(node, UnixTime::now())?;
        self.with(material, key, Vec::new())
    }

    /// The same with other public files or another key. The agents' certificates stay, and are judged again.
    fn with(
        &self,
        material: Material,
        key: Arc<CertifiedKey>,
        since: Vec<String>,
    ) -> Result<Self, CredentialsError> {
        let (tls, domain) = (self.tls.clone(), self.trust_domain.clone());
        let agents = |material: &_, calls: &_| presented::judged_anew(&self.agents, material, calls);
        let files = (self.fingerprint, self.of_files.clone());
        Self::of(material, key, tls, domain, files, since, agents)
    }

    /// Whether peers that trust these CA certificates would accept the certificate in use.
    ///
    /// # Errors
    /// They would not.
    pub fn fits(&self, node: &NodeName, bundle: Arc<TrustBundle>) -> Result<(), MaterialError> {
        let mut material = Material::clone(&self.material);
        material.bundle = bundle;
        material.accepted_by_peers(node, UnixTime::now())
    }

    /// The certificate in use with its key.
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// What the certificate in use says.
    pub fn leaf(&self) -> &Leaf {
        &self.material.leaf
    }

    fn of(
        material: Material,
        key: Arc<CertifiedKey>,
        agreed_on: Tls,
        trust_domain: TrustDomain,
        (fingerprint, of_files): (Fingerprint, Vec<String>),
        since: Vec<String>,
        agents: impl FnOnce(&Material, &Calls) -> Agents,
    ) -> Result<Self, CredentialsError> {
        let tls = |error: &dyn std::fmt::Display| CredentialsError::Tls(error.to_string());
        let made = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        let material = Arc::new(material);
        let (provider, versions) = (Arc::new(agreed(&agreed_on)), versions(&agreed_on));
        let presented = Arc::new(SingleCertAndKey::from(key.clone()));

        let spiffe = Arc::new(agreed_on.spiffe.clone());
        let clients = Arc::new(ClientVerifier::new(material.clone(), spiffe.clone())?);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| tls(&error))?
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(presented.clone());
        server.alpn_protocols = vec![ALPN_H2.into(), ALPN_HTTP_1_1.into()];
        // Tickets carry the session, so resumption costs no memory here. Their keys live and die with this
        // snapshot: after a reload nobody resumes past new certificates or revocations.
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| tls(&error))?;
        server.send_tls13_tickets = 1;
        // Without it, TLS 1.2 has the triple handshake attack (RFC 7627).
        server.require_ems = true;
        // Early data can be replayed.
        server.max_early_data_size = 0;

        let servers = Arc::new(ServerVerifier::new(material.clone(), spiffe)?);
        let calls = Calls { provider, versions, servers };
        let node = calls.presenting(&material, presented).map_err(|error| tls(&error))?;
        let agents = agents(&material, &calls);
        let mut problems = [of_files.as_slice(), &since].concat();
        problems.extend(agents.values().filter_map(|agent| agent.as_ref().err().cloned()));
        problems.sort();
        problems.dedup();

        Ok(Self {
            server: Arc::new(server),
            node,
            agents,
            trust_domain,
            clients,
            servers: calls.servers,
            crl_end: material.revocations(UnixTime::now()).first_end(),
            of_files,
            problems,
            not_after: material.leaf.not_after,
            made,
            fingerprint,
            lists: Shared::of(&material),
            material,
            key,
            tls: agreed_on,
        })
    }

    /// The CA certificates that are trusted.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.material.bundle
    }

    /// What calls present that are made as `agent`, or else as this node. An agent without a certificate presents the
    /// node's.
    ///
    /// # Errors
    /// Why the agent's certificate cannot be used. Fails closed.
    pub fn presented(&self, agent: Option<&AgentName>) -> Result<&Presented, &str> {
        match agent.and_then(|agent| self.agents.get(agent)) {
            Some(presented) => presented.as_ref().map_err(String::as_str),
            None => Ok(&self.node),
        }
    }

    /// When what [`Credentials::clients`] and [`Credentials::servers`] say may change without new files, epoch seconds.
    pub fn changes(&self) -> impl Iterator<Item = i64> {
        let lists = self.material.crls.iter();
        let lists = lists.flat_map(|list| [Some(list.this_update), list.next_update].into_iter().flatten());
        let anchors = self.material.bundle.anchors().iter();
        lists.chain(anchors.flat_map(|anchor| [anchor.not_before, anchor.not_after.saturating_add(1)]))
    }

    /// What an operator has to know now: the problems, and lists that end soon.
    pub fn warnings(&self, now: UnixTime) -> Vec<Warning> {
        let told = |text: &String| Warning { about: text.clone(), text: text.clone() };
        let mut warnings: Vec<_> = self.problems.iter().map(told).collect();
        let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        for (agent, presented) in &self.agents {
            let ends = presented.as_ref().map_or(i64::MAX, |presented| presented.not_after);
            if ends - at <= AGENT_ENDS_SOON {
                let about = format!("the certificate of agent {agent} ends");
                let text = match ends - at {
                    ..=0 => format!(
                        "the certificate of agent {agent} has ended, so peers refuse its calls: renew it"
                    ),
                    left => {
                        format!("{about} in {} hours; peers then refuse its calls: renew it", left / 3600)
                    }
                };
                warnings.push(Warning { about, text });
            }
        }
        for list in self.material.revocations(now).lists {
            let Some(left) = list.next_update.map(|end| end - at).filter(|left| *left <= CRL_ENDS_SOON)
            else {
                continue;
            };
            let subject = format!("the revocation list of {}", list.issuer_name);
            let meaning = match self.material.coverage {
                Coverage::Required => {
                    "everyone is refused whose certificate this CA signed; publish a new list"
                }
                Coverage::Optional => {
                    "later revocations by this CA may be missing here; publish a new list (what it revokes stays refused)"
                }
            };
            warnings.push(match left {
                ..=0 => Warning {
                    text: format!("{subject} has ended, so {meaning}"),
                    about: format!("{subject} has ended"),
                },
                _ => Warning {
                    text: format!("{subject} ends in {} hours; from then on {meaning}", left / 3600),
                    about: format!("{subject} ends"),
                },
            });
        }
        warnings
    }

    /// Shows in the metrics when it ends.
    fn show(&self) {
        METRICS.set_certificate_end(self.not_after);
        METRICS.set_crl_end(self.crl_end);
    }
}

/// The cryptography of handshakes: the configured groups, and nothing that is not needed.
fn agreed(tls: &Tls) -> CryptoProvider {
    let groups = tls.groups.iter().map(|group| match group {
        Group::X25519MlKem768 => kx_group::X25519MLKEM768,
        Group::X25519 => kx_group::X25519,
        Group::Secp256r1 => kx_group::SECP256R1,
        Group::Secp384r1 => kx_group::SECP384R1,
    });
    CryptoProvider { kx_groups: groups.collect(), ..aws_lc_rs::default_provider() }
}

fn versions(tls: &Tls) -> Vec<&'static SupportedProtocolVersion> {
    match tls.min_version {
        TlsVersion::V1_3 => vec![&rustls::version::TLS13],
        TlsVersion::V1_2 => vec![&rustls::version::TLS13, &rustls::version::TLS12],
    }
}

/// The snapshot in use, and word of each new one.
pub struct CredentialStore {
    current: ArcSwap<Credentials>,
    replaced: watch::Sender<()>,
    /// Why the files as they are now cannot be used.
    failure: Mutex<Option<String>>,
    /// What others who take care of them have to say, by what it is about.
    notes: Mutex<BTreeMap<&'static str, String>>,
    look: Notify,
}

impl CredentialStore {
    /// Starts with `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        credentials.show();
        Self::on_trial(credentials)
    }

    /// For connections that try `credentials` which are not in use.
    pub fn on_trial(credentials: Credentials) -> Self {
        let (current, replaced) = (ArcSwap::from_pointee(credentials), watch::Sender::new(()));
        let (failure, notes, look) = Default::default();
        Self { current, replaced, failure, notes, look }
    }

    /// Asks for the files to be read, which have changed just now.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Waits until somebody asks for that.
    pub async fn asked_to_look(&self) {
        self.look.notified().await;
    }

    /// Notes something that an operator has to know about one matter, in a sentence; `None`: all is well with it. True if
    /// that is news.
    pub fn note(&self, about: &'static str, sentence: Option<String>) -> bool {
        let notes = &mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        match sentence {
            Some(sentence) => notes.insert(about, sentence.clone()).as_ref() != Some(&sentence),
            None => notes.remove(about).is_some(),
        }
    }

    /// The snapshot in use.
    pub fn load(&self) -> Guard<Arc<Credentials>> {
        self.current.load()
    }

    /// The snapshot in use, for longer than a moment.
    pub fn load_full(&self) -> Arc<Credentials> {
        self.current.load_full()
    }

    /// Uses `credentials` from now on, which were made from the files as they are now.
    pub fn replace(&self, credentials: Credentials) {
        self.apply(credentials);
        self.failed(None);
    }

    /// Uses `credentials` from now on.
    pub fn apply(&self, credentials: Credentials) {
        credentials.show();
        self.current.store(Arc::new(credentials));
        self.replaced.send_replace(());
    }

    /// Notes why the files as they are now cannot be used; `None`: they can, or are those in use.
    pub fn failed(&self, why: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// What is wrong now, each in a sentence.
    pub fn problems(&self) -> Vec<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let warnings = self.load().warnings(UnixTime::now());
        let notes: Vec<_> =
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        failure.into_iter().chain(notes).chain(warnings.into_iter().map(|warning| warning.text)).collect()
    }

    /// Wakes at each snapshot from now on.
    pub fn replacements(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}
