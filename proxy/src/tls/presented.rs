//! What this node presents when it calls: its own certificate, or that of an agent on it which has one.
//!
//! Each identity has configurations of its own, and with them sessions of its own: none is resumed as somebody else.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_shared::certificate::{MaterialError, join_key};
use mesh_shared::config::Config;
use mesh_shared::material::Material;
use mesh_shared::{AgentName, Identity};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, SupportedProtocolVersion};

use crate::tls::verify::ServerVerifier;

/// HTTP/2, as negotiated in TLS (RFC 9113, section 3.1).
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1, as negotiated in TLS (RFC 7301, section 6).
pub const ALPN_HTTP_1_1: &[u8] = b"http/1.1";

/// One identity, ready for calls.
#[derive(Debug, Clone)]
pub struct Presented {
    /// Offers h2 and http/1.1.
    pub any: Arc<ClientConfig>,
    /// For calls that need HTTP/1.1, such as protocol upgrades.
    pub http1: Arc<ClientConfig>,
    /// What is presented, leaf first.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// End of the leaf's validity, epoch seconds.
    pub not_after: i64,
    key: Arc<SingleCertAndKey>,
}

/// How servers are judged, for all identities alike.
pub struct Calls {
    /// The cryptography of handshakes.
    pub provider: Arc<CryptoProvider>,
    /// The versions that are spoken.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// Judges whoever is called.
    pub servers: Arc<ServerVerifier>,
}

impl Calls {
    /// Calls that present `key`.
    ///
    /// # Errors
    /// rustls takes none of it.
    pub fn presenting(
        &self,
        material: &Material,
        key: Arc<SingleCertAndKey>,
    ) -> Result<Presented, rustls::Error> {
        let mut any = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&self.versions)?
            .dangerous() // rustls' word for any verifier that is not its own; ours wraps its own.
            .with_custom_certificate_verifier(self.servers.clone())
            .with_client_cert_resolver(key.clone());
        any.alpn_protocols = vec![ALPN_H2.into(), ALPN_HTTP_1_1.into()];
        any.require_ems = true;
        any.enable_early_data = false;
        let mut http1 = any.clone();
        http1.alpn_protocols = vec![ALPN_HTTP_1_1.into()];
        Ok(Presented {
            any: any.into(),
            http1: http1.into(),
            chain: material.chain.clone().into(),
            not_after: material.leaf.not_after,
            key,
        })
    }
}

/// The agents' identities; without an entry, an agent has no certificate, and `Err` says why one that is there cannot be
/// used.
pub type Agents = HashMap<AgentName, Result<Presented, String>>;

/// Where an agent's certificate and key are.
pub struct AgentFiles {
    /// The agent.
    pub agent: AgentName,
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whether the configuration names them, so that they have to be there.
    named: bool,
}

/// The files of the agents that have listeners, each agent once.
pub fn agent_files(config: &Config) -> Vec<AgentFiles> {
    let node = &config.mesh.node_name;
    // A folder that is a link is replaced as a whole when the node's certificate is renewed.
    let folder = config.mesh.tls.cert_path.parent();
    let beside = folder.filter(|folder| !folder.is_symlink()).or_else(|| folder?.parent());
    let mut files: Vec<AgentFiles> = Vec::new();
    for agent in config.proxy.outbound.listeners.iter().filter_map(|listener| listener.as_agent.as_ref()) {
        if files.iter().any(|known| known.agent == agent.name) {
            continue;
        }
        let usual = |ending: &str| {
            let name = format!("{}@{node}.{ending}", agent.name);
            beside.map_or_else(|| PathBuf::from(&name), |folder| folder.join(&name))
        };
        let (certificate, key) = agent.files.clone().unwrap_or_else(|| (usual("crt"), usual("key")));
        files.push(AgentFiles { agent: agent.name.clone(), certificate, key, named: agent.files.is_some() });
    }
    files
}

/// The agents' identities, with the trust and the lists of `material`. A certificate that is there and cannot be used
/// fails the calls of that agent and of nobody else: it is never replaced by the node's, which may do more.
pub fn agents(config: &Config, material: &Material, calls: &Calls) -> Agents {
    let mut agents = Agents::new();
    for files in agent_files(config) {
        let there = files.certificate.exists() || files.key.exists();
        if !files.named && !there {
            continue;
        }
        let identity = Identity::Agent(files.agent.clone(), config.mesh.node_name.clone());
        let presented = present(&files, &identity, material, calls)
            .map_err(|error| format!("the identity {identity} cannot be used: {error}"));
        agents.insert(files.agent, presented);
    }
    agents
}

/// The same identities with the trust and the lists of `material`. What could not be used before cannot be now.
pub fn judged_anew(agents: &Agents, material: &Material, calls: &Calls) -> Agents {
    let judge = |presented: &Presented| {
        let own = material.with_chain(PathBuf::from("of an agent of this node"), presented.chain.to_vec())?;
        own.accepted_as_client(UnixTime::now())?;
        let untrusted = |error: rustls::Error| MaterialError::Untrusted {
            path: own.cert_path.clone(),
            reason: error.to_string(),
        };
        calls.presenting(&own, presented.key.clone()).map_err(untrusted)
    };
    let anew = agents.iter().map(|(agent, presented)| {
        let judged = presented.as_ref().map_err(Clone::clone).and_then(|presented| {
            judge(presented).map_err(|error| format!("the identity of {agent} cannot be used: {error}"))
        });
        (agent.clone(), judged)
    });
    anew.collect()
}

fn present(
    files: &AgentFiles,
    identity: &Identity,
    material: &Material,
    calls: &Calls,
) -> Result<Presented, MaterialError> {
    let own = material.with_certificate(&files.certificate)?;
    let untrusted = |reason| MaterialError::Untrusted { path: files.certificate.clone(), reason };
    if own.leaf.identity != *identity {
        return Err(untrusted(format!("it names {}, and not {identity}", own.leaf.identity)));
    }
    own.accepted_as_client(UnixTime::now())?;
    let key = Arc::new(SingleCertAndKey::from(join_key(&own.chain, &files.certificate, &files.key)?));
    calls.presenting(&own, key).map_err(|error| untrusted(error.to_string()))
}
