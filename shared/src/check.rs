//! What `mesh-proxy check` and `registryd check` find out without starting, a line each.

use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use crate::certificate::{self, Leaf, MaterialError, TrustBundle};
use crate::config::keys::DEFAULT_STATE_DIR;
use crate::config::{Config, TlsFiles};
use crate::material::{Coverage, Material};
use crate::revocation::{self, InForce, RevocationList};

/// A certificate that ends within so many seconds deserves a warning, unless its whole life is short.
const SOON: i64 = 14 * DAY;
/// As mesh-proxy warns of them: a list lives for 14 days and is signed again after 7.
const LIST_SOON: i64 = 3 * DAY;
const DAY: i64 = 86_400;

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// How it went.
    pub outcome: Outcome,
    /// What was looked at.
    pub about: About,
    /// What was looked at and what was found.
    pub text: String,
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum About {
    /// The configuration.
    Configuration,
    /// The node's certificate.
    Certificate,
    /// Its private key.
    Key,
    /// The trust bundle, and who could replace it.
    Trust,
    /// Revocation lists.
    Revocation,
    /// An agent's server.
    Backend,
    /// A folder that a daemon writes.
    Folder,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As it should be.
    #[serde(rename = "ok")]
    Ok,
    /// Works, but not for long or not as meant.
    #[serde(rename = "warn")]
    Warning,
    /// Cannot work.
    #[serde(rename = "fail")]
    Failed,
    /// Not looked at here.
    #[serde(rename = "skipped")]
    Skipped,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Ok => "ok  ",
            Outcome::Warning => "warn",
            Outcome::Failed => "FAIL",
            Outcome::Skipped => "skip",
        };
        write!(f, "{mark} {}", self.text)
    }
}

/// What the sidecar needs, as the user who runs this sees it.
pub fn mesh_proxy(config: &Config) -> Vec<Check> {
    let mut report = Report::new(config);
    report.backends();
    let (certificate, key) = (&config.mesh.tls.cert_path, &config.mesh.tls.key_path);
    let chain = report.certificates();
    report.trust();
    let shown = key.display();
    report.judge(
        About::Key,
        match chain {
            Some(chain) => certificate::join_key(&chain, certificate, key)
                .map(|_| format!("private key {shown} belongs to the certificate")),
            None => certificate::read_key(key).map(|_| format!("private key {shown} can be read")),
        },
    );
    if let Some(exposure) = certificate::exposure(key) {
        report.tell(About::Key, Outcome::Warning, exposure);
    }
    report.folder(&Folder {
        key: "proxy.state_dir",
        path: &config.proxy.state_dir,
        made_by_unit: Path::new(DEFAULT_STATE_DIR),
        without: (Outcome::Warning, "after a restart the mesh is unknown until registryd answers"),
    });
    report.checks
}

/// What the registry daemon needs, as the user who runs this sees it.
pub fn registryd(config: &Config) -> Vec<Check> {
    let mut report = Report::new(config);
    report.certificates();
    report.trust();
    report.tell(
        About::Key,
        Outcome::Skipped,
        format!(
            "private key {}: only mesh-proxy reads it (mesh-proxy check)",
            config.mesh.tls.key_path.display()
        ),
    );
    report.storage();
    if let Some(folder) = config.registryd.socket.parent() {
        report.folder(&Folder {
            key: "registryd.socket",
            path: folder,
            made_by_unit: Path::new("/run/mesh"),
            without: (Outcome::Failed, "the socket cannot be made"),
        });
    }
    report.checks
}

/// What certificate, trust bundle and revocation lists come to: the public part of both daemons' checks, which needs no key.
pub fn certificates(config: &Config) -> Vec<Check> {
    let mut report = Report { config, checks: Vec::new() };
    report.certificates();
    report.trust();
    report.checks
}

/// A folder that is made where it is missing.
struct Folder<'c> {
    /// The configuration key that says where it is.
    key: &'static str,
    path: &'c Path,
    /// What the daemon's systemd unit makes before each start.
    made_by_unit: &'static Path,
    /// What it means if it cannot be written.
    without: (Outcome, &'static str),
}

struct Report<'c> {
    config: &'c Config,
    checks: Vec<Check>,
}

impl<'c> Report<'c> {
    fn new(config: &'c Config) -> Self {
        let mut report = Self { config, checks: Vec::new() };
        for warning in &config.warnings {
            report.tell(About::Configuration, Outcome::Warning, warning.to_string());
        }
        report.tell(
            About::Configuration,
            Outcome::Ok,
            format!("mesh is enabled, this is node {}", config.mesh.node_name),
        );
        report
    }

    fn tell(&mut self, about: About, outcome: Outcome, text: String) {
        self.checks.push(Check { outcome, about, text });
    }

    fn judge(&mut self, about: About, result: Result<String, MaterialError>) {
        match result {
            Ok(text) => self.tell(about, Outcome::Ok, text),
            Err(error) => {
                let hint = self.hint(&error);
                self.tell(about, Outcome::Failed, format!("{error}{hint}"));
            }
        }
    }

    /// What to do about a file that is not where it is by default.
    fn hint(&self, error: &MaterialError) -> String {
        let MaterialError::Unreadable { what, path, source } = error else { return String::new() };
        let folder = TlsFiles::CA_FOLDER;
        if source.kind() != io::ErrorKind::NotFound || !path.starts_with(folder) {
            return String::new();
        }
        let node = &self.config.mesh.node_name;
        let issue = match *what {
            "trust bundle" => "meshctl ca init".into(),
            _ => format!("meshctl ca issue-node {node}"),
        };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let case = match file.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => format!("; meshctl names files in lower case, as in mesh.node_name: {node}"),
            false => String::new(),
        };
        format!(" (is {folder} mounted? else `{issue}`{case})")
    }

    /// The value; a failure is told.
    fn keep<T>(&mut self, about: About, result: Result<T, MaterialError>) -> Option<T> {
        result.map_err(|error| self.judge(about, Err(error))).ok()
    }

    /// Judges the public files, each by itself and then together; gives the certificate's chain.
    fn certificates(&mut self) -> Option<Vec<CertificateDer<'static>>> {
        let config = self.config;
        let (tls, node, now) = (&config.mesh.tls, &config.mesh.node_name, UnixTime::now());
        let bundle = self.keep(About::Trust, TrustBundle::read(&tls.ca_path));
        let crls = self.lists();
        if let Some(bundle) = &bundle {
            self.anchors(&tls.ca_path, bundle, now);
            for (path, lists) in crls.iter().flatten() {
                self.revocations(path, &revocation::in_force(lists, bundle, now), now);
            }
        }
        let (chain, leaf) = self.keep(About::Certificate, certificate::read_leaf(&tls.cert_path))?;
        let shown = tls.cert_path.display();
        let names = leaf.names_node(node, &tls.cert_path);
        self.judge(About::Certificate, names.map(|()| format!("certificate {shown}: CN names node {node}")));
        self.expiry(&leaf, now);
        if let (Some(bundle), Some(crls)) = (bundle, crls) {
            let material = Material {
                cert_path: tls.cert_path.clone(),
                chain: chain.clone(),
                leaf,
                bundle: Arc::new(bundle),
                crls: crls.into_iter().flat_map(|(_, lists)| lists).collect(),
                coverage: Coverage::of(config),
            };
            self.judge(
                About::Certificate,
                material.accepted_by_peers(node, now).map(|()| {
                    format!(
                        "certificate {shown}: chains to {}, is for {node}.mesh, client and server",
                        tls.ca_path.display()
                    )
                }),
            );
        }
        Some(chain)
    }

    /// The revocation lists that are configured or, where none are, those that are found, with their files. `None`: those
    /// that are configured cannot be used.
    fn lists(&mut self) -> Option<Vec<(PathBuf, Vec<RevocationList>)>> {
        let config = self.config;
        if let Some(path) = &config.proxy.crl_path {
            return Some(vec![(path.clone(), self.keep(About::Revocation, revocation::read(path))?)]);
        }
        let mut found = Vec::new();
        for path in revocation::beside(&config.mesh.tls.ca_path).into_iter().filter(|path| path.exists()) {
            match revocation::read(&path) {
                Ok(lists) => found.push((path, lists)),
                Err(error) => {
                    self.tell(About::Revocation, Outcome::Warning, format!("{error}; it is ignored"))
                }
            }
        }
        Some(found)
    }

    /// Who could put another CA in place of the mesh's.
    fn trust(&mut self) {
        if let Some(sentence) = certificate::replaceable(&self.config.mesh.tls.ca_path) {
            self.tell(About::Trust, Outcome::Warning, sentence);
        }
    }

    /// The agents' servers. They need not run yet.
    fn backends(&mut self) {
        for (key, address) in self.config.proxy.backend.addresses() {
            let Some(path) = address.socket_path() else {
                self.tell(About::Backend, Outcome::Ok, format!("backend {address} is loopback"));
                continue;
            };
            let is_socket = path.metadata().map(|file| file.file_type().is_socket());
            let (outcome, found) = match (is_socket, permits(path, Access::WRITE_OK)) {
                (Ok(false), _) => (Outcome::Failed, format!("something else lies there ({key})")),
                (Ok(true), Ok(())) => (Outcome::Ok, "this user can connect".into()),
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
                    (Outcome::Skipped, "not there yet; the agent makes it at its start".into())
                }
                (Err(error), _) | (_, Err(error)) => {
                    (Outcome::Warning, format!("{error}; this user cannot connect ({key})"))
                }
            };
            self.tell(About::Backend, outcome, format!("backend {address} is a unix socket: {found}"));
        }
    }

    fn expiry(&mut self, leaf: &Leaf, now: UnixTime) {
        let path = self.config.mesh.tls.cert_path.display();
        // One that renews itself is replaced after half its life, which may be a week.
        let soon = SOON.min((leaf.not_after - leaf.not_before) / 3);
        let (outcome, when) = until(leaf.not_after, now, soon);
        self.tell(About::Certificate, outcome, format!("certificate {path}: {when}"));
    }

    /// CA certificates whose end is past or near: with them ends all that they signed.
    fn anchors(&mut self, path: &Path, bundle: &TrustBundle, now: UnixTime) {
        for anchor in bundle.anchors() {
            let (outcome, when) = until(anchor.not_after, now, SOON);
            if outcome != Outcome::Ok {
                // One that has ended does not count any more; whether that matters shows below.
                let text =
                    format!("trust bundle {}: the CA certificate of {}: {when}", path.display(), anchor.name);
                self.tell(About::Trust, Outcome::Warning, text);
            }
        }
    }

    fn revocations(&mut self, path: &Path, lists: &InForce, now: UnixTime) {
        let path = path.display();
        let (outcome, when) =
            lists.first_end().map_or((Outcome::Ok, "no end".into()), |ends| until(ends, now, LIST_SOON));
        // Lists that are merely found refuse nobody by their end.
        let found = Coverage::of(self.config) == Coverage::Optional && outcome == Outcome::Failed;
        let outcome = if found { Outcome::Warning } else { outcome };
        self.tell(
            About::Revocation,
            outcome,
            format!("revocation lists {path}: {} revoked, {when}", lists.revoked()),
        );
        for list in &lists.forged {
            let issuer = &list.issuer_name;
            self.tell(
                About::Revocation,
                Outcome::Warning,
                format!("revocation lists {path}: the list of {issuer} was not signed by that CA, so it is ignored"),
            );
        }
        for list in &lists.coming {
            let issuer = &list.issuer_name;
            self.tell(
                About::Revocation,
                Outcome::Warning,
                format!(
                    "revocation lists {path}: the list of {issuer} says that it was made in the future, so it does not \
                     count yet (is a clock wrong?)"
                ),
            );
        }
    }

    /// registryd never makes this folder: a mount that is missing must not be taken for an empty one.
    fn storage(&mut self) {
        let registry = self.config.mesh.registry_path();
        let lock = registry.with_extension("json.lock");
        let folder = self.config.mesh.storage_dir.as_path();
        let if_there = |path: &Path, access| match path.exists() {
            true => permits(path, access),
            false => Ok(()),
        };
        let looked_at = [
            (folder, writable(folder)),
            (&registry, if_there(&registry, Access::READ_OK)),
            (&lock, if_there(&lock, Access::READ_OK | Access::WRITE_OK)),
        ];
        let mut failed = looked_at.into_iter().filter_map(|(path, result)| Some((path, result.err()?)));
        match failed.next() {
            None => self.tell(
                About::Folder,
                Outcome::Ok,
                format!("mesh.storage_dir {}: this user can write it", folder.display()),
            ),
            Some((path, error)) => self.tell(
                About::Folder,
                Outcome::Failed,
                format!("mesh.storage_dir: {}: {error}; registryd cannot keep mesh.json", path.display()),
            ),
        }
    }

    fn folder(&mut self, folder: &Folder<'_>) {
        let (key, path) = (folder.key, folder.path.display());
        let missing = !folder.path.exists();
        // The part that is there already; a relative path begins here.
        let there = folder.path.ancestors().find(|each| each.exists()).unwrap_or(Path::new("."));
        let (outcome, text) = match writable(there) {
            Ok(()) if missing => (Outcome::Ok, format!("{key}: this user can make {path}")),
            Ok(()) => (Outcome::Ok, format!("{key}: this user can write {path}")),
            Err(_) if missing && folder.path == folder.made_by_unit => {
                (Outcome::Skipped, format!("{key}: {path} is made by the systemd unit at each start"))
            }
            Err(error) => {
                let (outcome, meaning) = folder.without;
                (outcome, format!("{key}: {}: {error}; {meaning}", there.display()))
            }
        };
        self.tell(About::Folder, outcome, text);
    }
}

/// How far it is to an end, in epoch seconds; it is near within `soon` seconds.
fn until(end: i64, now: UnixTime, soon: i64) -> (Outcome, String) {
    let left = end - now.as_secs() as i64;
    let days = left.unsigned_abs() / DAY.unsigned_abs();
    match left {
        i64::MIN..0 => {
            (Outcome::Failed, format!("ended {days} {} ago", if days == 1 { "day" } else { "days" }))
        }
        _ if left < soon => (Outcome::Warning, format!("{days} days to expiry")),
        _ => (Outcome::Ok, format!("{days} days to expiry")),
    }
}

fn writable(folder: &Path) -> io::Result<()> {
    match folder.metadata()?.is_dir() {
        true => permits(folder, Access::WRITE_OK | Access::EXEC_OK),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Asks for the user that the process counts as.
fn permits(path: &Path, access: Access) -> io::Result<()> {
    Ok(accessat(CWD, path, access, AtFlags::EACCESS)?)
}
