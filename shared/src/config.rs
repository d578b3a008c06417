//! The configuration file that `mesh-proxy`, `registryd` and `meshctl` share: one YAML file, read once at the
//! start, every mistake in it reported together.

mod mesh;
mod proxy;
mod registryd;
mod yaml;

use std::fmt;
use std::path::{Path, PathBuf};

pub use mesh::{Discovery, Mesh, Seed, StaticPeer, TlsFiles};
pub use proxy::{Backend, Inbound, Limits, Outbound, OutboundListener, Policy, Proxy, Timeouts};
pub use registryd::{Dns, Registryd};
pub use yaml::Mistake;

/// Where the file lies unless `--config` or [`PATH_VARIABLE`] says otherwise.
pub const DEFAULT_PATH: &str = "/etc/mesh/mesh.yaml";
/// Environment variable that names the file.
pub const PATH_VARIABLE: &str = "MESH_CONFIG";
/// Exit code for a configuration that cannot work (EX_CONFIG of sysexits.h); restarting does not help.
pub const EXIT_CODE: u8 = 78;

/// Everything both daemons are told. All parts are checked against each other.
#[derive(Debug, Clone)]
pub struct Config {
    /// The reference document's section.
    pub mesh: Mesh,
    /// The sidecar.
    pub proxy: Proxy,
    /// The registry daemon.
    pub registryd: Registryd,
    /// Remarks that are no mistakes, such as a deprecated key.
    pub warnings: Vec<Mistake>,
}

/// A file that cannot be used.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub cause: ConfigErrorCause,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub enum ConfigErrorCause {
    /// It cannot be read.
    Unreadable(std::io::Error),
    /// It can be read and has these mistakes, at least one.
    Mistakes(Vec<Mistake>),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.cause {
            ConfigErrorCause::Unreadable(error) => write!(
                f,
                "cannot read the configuration {path}: {error} (name another file with --config or {PATH_VARIABLE})"
            ),
            ConfigErrorCause::Mistakes(mistakes) => {
                let plural = if mistakes.len() == 1 { "mistake" } else { "mistakes" };
                write!(f, "{path}: {} {plural}", mistakes.len())?;
                mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// An unreadable file, or all mistakes in it at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let fail = |cause| ConfigError { path: path.into(), cause };
        let text =
            std::fs::read_to_string(path).map_err(|error| fail(ConfigErrorCause::Unreadable(error)))?;
        Self::parse(&text).map_err(|mistakes| fail(ConfigErrorCause::Mistakes(mistakes)))
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// All mistakes in it, in the order of their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let document = yaml::Document::parse(text).map_err(|mistake| vec![mistake])?;
        let (mesh, warnings) = mesh::read(&document);
        let proxy = proxy::read(document.section("proxy"));
        let registryd = registryd::read(document.section("registryd"));
        if let Some(mesh) = &mesh {
            for (i, listener) in proxy.outbound.listeners.iter().enumerate() {
                if listener.node == mesh.node_name {
                    let key = format!("proxy.outbound.listeners[{i}].node");
                    document
                        .mistake(&key, format!("{} is this node itself; name another one", mesh.node_name));
                }
            }
        }
        let mistakes = document.into_mistakes();
        match mesh {
            Some(mesh) if mistakes.is_empty() => Ok(Self { mesh, proxy, registryd, warnings }),
            _ => Err(mistakes),
        }
    }
}

#[cfg(test)]
mod tests;
