//! `registryd.store`: where the registry is kept.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::yaml::Section;

/// Where the registry is kept.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// The store that is used.
    pub kind: StoreKind,
    /// How etcd is reached; always there where it is used, and may be there before that, for `meshctl store migrate`.
    pub etcd: Option<Etcd>,
    /// Where a `mesh.json` is kept for programs that only read it; with etcd only.
    pub export: Option<PathBuf>,
}

/// The kinds of stores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// `mesh.json` in `mesh.storage_dir`.
    #[default]
    File,
    /// An etcd cluster.
    Etcd,
}

/// How an etcd cluster is reached. A password never goes over the network in the clear.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// Its members, at least one; all with TLS or all without.
    pub endpoints: Vec<Endpoint>,
    /// What all keys begin with: an absolute path without a final slash.
    pub prefix: String,
    /// The CA that vouches for the members; always there with TLS.
    pub ca_path: Option<PathBuf>,
    /// This client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The user, and the file that holds the password.
    pub user: Option<(String, PathBuf)>,
}

/// `https://10.0.0.1:2379`: a member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    tls: bool,
    loopback: bool,
}

impl Endpoint {
    /// As a URL with scheme, host and port.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// Whether it is reached with TLS.
    pub fn has_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected a URL such as https://10.0.0.1:2379, found {text:?}");
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(expected()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(expected)?;
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(expected());
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address: Option<IpAddr> = bare.unwrap_or(host).parse().ok();
        if bare.is_some() != address.is_some_and(|address| address.is_ipv6())
            || (address.is_none() && !crate::address::is_host(host))
        {
            return Err(expected());
        }
        let loopback = address.is_some_and(|address| address.to_canonical().is_loopback());
        Ok(Self { url: format!("{scheme}://{rest}"), tls, loopback: loopback || host == "localhost" })
    }
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "file" => Ok(Self::File),
            "etcd" => Ok(Self::Etcd),
            other => Err(format!("expected file or etcd, found {other:?}")),
        }
    }
}

pub(super) fn read(section: Section<'_>) -> Store {
    let kind = section.parsed("kind").unwrap_or_default();
    let export = section.string("export").map(PathBuf::from);
    if export.is_some() && kind == StoreKind::File {
        section.mistake("export", "is for kind: etcd; with kind: file there is a mesh.json already");
    }
    let has_etcd = section.has("etcd");
    if kind == StoreKind::Etcd && !has_etcd {
        section.mistake("kind", "etcd needs registryd.store.etcd.endpoints, as in [https://10.0.0.1:2379]");
    }
    let etcd = section.section("etcd");
    let etcd_read = has_etcd.then(|| etcd_section(&etcd)).flatten();
    etcd.finish();
    section.finish();
    Store { kind, etcd: etcd_read, export }
}

fn etcd_section(section: &Section<'_>) -> Option<Etcd> {
    let endpoints: Vec<Endpoint> = section.list("endpoints").unwrap_or_default();
    let path = |key| section.string(key).map(PathBuf::from);
    let (ca_path, cert_path, key_path) = (path("ca_path"), path("cert_path"), path("key_path"));
    let (username, password_file) = (section.string("username"), path("password_file"));
    let prefix = section.parsed("prefix").map_or_else(|| "/mesh".into(), |Prefix(prefix)| prefix);
    if endpoints.is_empty() {
        // A list with mistakes in it has said so.
        if section.length("endpoints") == 0 {
            section.mistake("endpoints", "names no member, as in [https://10.0.0.1:2379]");
        }
        return None;
    }
    let tls = endpoints.iter().all(Endpoint::has_tls);
    if !tls && endpoints.iter().any(Endpoint::has_tls) {
        section.mistake("endpoints", "has https and http; all members are reached with TLS, or none is");
    }
    if tls && ca_path.is_none() {
        section.mistake("ca_path", "is missing: the CA certificate that etcd's own certificates chain to");
    }
    if !tls {
        for (key, given) in [("ca_path", &ca_path), ("cert_path", &cert_path), ("key_path", &key_path)] {
            if given.is_some() {
                section.mistake(key, "has no effect with http endpoints; write https in endpoints");
            }
        }
        if password_file.is_some()
            && let Some(open) = endpoints.iter().find(|endpoint| !endpoint.loopback)
        {
            let why = format!("would send the password in the clear to {}; write https there", open.as_str());
            section.mistake("password_file", why);
        }
    }
    let pairs = [
        ("cert_path", cert_path.is_some(), "key_path", key_path.is_some()),
        ("username", username.is_some(), "password_file", password_file.is_some()),
    ];
    for (one, has_one, other, has_other) in pairs {
        match (has_one, has_other) {
            (true, false) => section.mistake(other, format!("is missing; {one} has no effect without it")),
            (false, true) => section.mistake(one, format!("is missing; {other} has no effect without it")),
            _ => {}
        }
    }
    Some(Etcd {
        endpoints,
        prefix,
        ca_path,
        identity: cert_path.zip(key_path),
        user: username.zip(password_file),
    })
}

/// `/mesh`.
struct Prefix(String);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = text.len() > 1
            && text.starts_with('/')
            && !text.ends_with('/')
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        match good {
            true => Ok(Self(text.into())),
            false => Err(format!("expected an absolute path such as /mesh, found {text:?}")),
        }
    }
}
