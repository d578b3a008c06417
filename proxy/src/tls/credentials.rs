//! Certificate, key, trust bundle and revocation lists as one immutable snapshot.
//!
//! A snapshot is built whole, judged by the verifiers that peers use, and only then published; a failed
//! reload leaves the one in use as it is. Each handshake sees exactly one snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use mesh_shared::AgentName;
use mesh_shared::certificate::{Material, MaterialError};
use mesh_shared::config::{Config, Group, Tls, TlsVersion};
use mesh_shared::spiffe::TrustDomain;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::UnixTime;
use rustls::sign::SingleCertAndKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::sync::watch;

use crate::metrics::METRICS;
use crate::tls::fingerprint::Fingerprint;
use crate::tls::presented::{self, Agents, Calls, Presented};
pub use crate::tls::presented::{ALPN_H2, ALPN_HTTP_1_1};
use crate::tls::revocation::{self, Memory};
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
    /// When this snapshot was made, epoch seconds.
    pub made: i64,
    /// The content of the files.
    pub fingerprint: Fingerprint,
    /// The public files.
    material: Arc<Material>,
    /// End of the own certificate's validity, epoch seconds.
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
    /// Reads the configured files.
    ///
    /// # Errors
    /// Whatever would make peers refuse this node, or this node unable to verify peers. Fails closed.
    pub fn load(config: &Config) -> Result<Self, CredentialsError> {
        let tls = |error: &dyn std::fmt::Display| CredentialsError::Tls(error.to_string());
        // Before anything is read: what changes meanwhile is noticed at the next look.
        let fingerprint = Fingerprint::of(config);
        let made = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        let mut material = Material::load(config)?;
        let memory = config.proxy.crl_path.as_ref().map(|_| Memory::below(&config.proxy.state_dir));
        let mut problems = match &memory {
            Some(memory) => revocation::join(&mut material, memory.recall()),
            None => Vec::new(),
        };
        material.names_node(&config.mesh.node_name)?;
        material.accepted_by_peers(&config.mesh.node_name, UnixTime::now())?;
        let key = Arc::new(SingleCertAndKey::from(material.with_key(&config.mesh.tls.key_path)?));
        let material = Arc::new(material);
        let (provider, versions) = (Arc::new(agreed(&config.proxy.tls)), versions(&config.proxy.tls));

        let spiffe = Arc::new(config.proxy.tls.spiffe.clone());
        let clients = Arc::new(ClientVerifier::new(material.clone(), spiffe.clone())?);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| tls(&error))?
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(key.clone());
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
        let node = calls.presenting(&material, key).map_err(|error| tls(&error))?;
        let agents = presented::agents(config, &material, &calls);
        problems.extend(agents.values().filter_map(|agent| agent.as_ref().err().cloned()));
        if let Some(memory) = memory {
            memory.keep(&material);
        }

        Ok(Self {
            server: Arc::new(server),
            node,
            agents,
            trust_domain: config.mesh.trust_domain.clone(),
            clients,
            servers: calls.servers,
            crl_end: material.revocations(UnixTime::now()).first_end(),
            problems,
            not_after: material.leaf.not_after,
            made,
            fingerprint,
            material,
        })
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
                let text =
                    format!("{about} in {} hours; peers then refuse its calls: renew it", (ends - at) / 3600);
                warnings.push(Warning { about, text });
            }
        }
        for list in self.material.revocations(now).lists {
            let Some(left) = list.next_update.map(|end| end - at).filter(|left| *left <= CRL_ENDS_SOON)
            else {
                continue;
            };
            let subject = format!("the revocation list of {}", list.issuer_name);
            let meaning = "everyone is refused whose certificate this CA signed; publish a new list";
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
}

impl CredentialStore {
    /// Starts with `credentials`.
    pub fn new(credentials: Credentials) -> Self {
        credentials.show();
        let (current, replaced) = (ArcSwap::from_pointee(credentials), watch::Sender::new(()));
        Self { current, replaced, failure: Mutex::new(None) }
    }

    /// The snapshot in use.
    pub fn load(&self) -> Guard<Arc<Credentials>> {
        self.current.load()
    }

    /// The snapshot in use, for longer than a moment.
    pub fn load_full(&self) -> Arc<Credentials> {
        self.current.load_full()
    }

    /// Uses `credentials` from now on.
    pub fn replace(&self, credentials: Credentials) {
        credentials.show();
        self.current.store(Arc::new(credentials));
        self.failed(None);
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
        failure.into_iter().chain(warnings.into_iter().map(|warning| warning.text)).collect()
    }

    /// Wakes at each snapshot from now on.
    pub fn replacements(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}
