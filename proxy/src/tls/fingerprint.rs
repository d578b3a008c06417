//! Whether files have changed, by their content.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::LazyLock;

use mesh_shared::config::Config;
use mesh_shared::revocation;
use zeroize::Zeroizing;

use crate::tls::presented::agent_files;

/// Secret keys of this process's own: a fingerprint tells nobody what is in a file.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The content of the files that make up the credentials, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Reads the configured files; one that cannot be read counts as well.
    pub fn of(config: &Config) -> Self {
        let tls = &config.mesh.tls;
        let lists = match &config.proxy.crl_path {
            Some(path) => vec![path.clone()],
            None => revocation::beside(&tls.ca_path).into(),
        };
        let files = [&tls.ca_path, &tls.cert_path, &tls.key_path].into_iter().chain(&lists);
        let content = |path: &Path| std::fs::read(path).map(Zeroizing::new).map_err(|error| error.kind());
        let hash = |path: &Path| HASHES.hash_one(content(path).as_deref());
        let own: Vec<_> = files.map(|path| hash(path)).collect();
        let agents = agent_files(config);
        let of_agents: Vec<_> =
            agents.iter().map(|files| [hash(&files.certificate), hash(&files.key)]).collect();
        Self(HASHES.hash_one((own, of_agents)))
    }
}
