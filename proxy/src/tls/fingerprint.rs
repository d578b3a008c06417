//! Whether files have changed, by their content.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::LazyLock;

use mesh_shared::config::Config;
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
        let files =
            [Some(&tls.ca_path), Some(&tls.cert_path), Some(&tls.key_path), config.proxy.crl_path.as_ref()];
        let content = |path: &Path| std::fs::read(path).map(Zeroizing::new).map_err(|error| error.kind());
        let hash = |path: &Path| HASHES.hash_one(content(path).as_deref());
        let own = files.map(|path| path.map(|path| hash(path)));
        let agents = agent_files(config);
        let of_agents: Vec<_> =
            agents.iter().map(|files| [hash(&files.certificate), hash(&files.key)]).collect();
        Self(HASHES.hash_one((own, of_agents)))
    }
}
