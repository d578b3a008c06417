//! The configuration of a node that joins: made where there is none, looked at where there is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mesh_shared::certificate::Leaf;
use mesh_shared::config::{Config, TlsFiles};
use mesh_shared::enrolment::Enrolled;
use mesh_shared::name::NodeName;
use serde_json::{Map, Value, json};

use super::files;
use crate::{Failure, own_config};

/// registryd's own folder, where no shared one is configured.
const STORAGE_DIR: &str = "/var/lib/registryd";

/// `mesh.storage_dir=/srv/mesh`: a key of the configuration and its value.
#[derive(Debug, Clone)]
pub struct Setting {
    path: Vec<String>,
    value: Value,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("expected <section>.<key>=<value>, as in mesh.storage_dir=/srv/mesh, found {text:?}");
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        if path.len() < 2 || path.iter().any(|part| part.is_empty()) {
            return Err(bad());
        }
        // What is not JSON is meant as it is written.
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        Ok(Self { path, value })
    }
}

/// What a configuration of this node has to say.
pub struct Wanted {
    /// The node.
    pub node: NodeName,
    /// Where its certificate, its key and what it trusts lie.
    pub files: TlsFiles,
    /// mesh-proxy's folder.
    pub state_dir: PathBuf,
}

impl Wanted {
    fn crl_path(&self) -> PathBuf {
        self.files.ca_path.with_file_name("crl.pem")
    }
}

/// The configuration that is there; `None`: there is none, or it is the one that was installed and nobody has touched.
///
/// # Errors
/// It cannot be used, or it is another node's or names other files; then all keys to change are told.
pub fn existing(path: &Path, wanted: &Wanted) -> Result<Option<Config>, Failure> {
    let Some(config) = own_config(path)? else { return Ok(None) };
    let mesh = &config.mesh;
    let mut changes = Vec::new();
    let mut expect = |key: &str, found: String, expected: String| {
        if found != expected {
            changes.push(format!("  {key}: {expected} (it is {found})"));
        }
    };
    let shown = |path: &Path| path.display().to_string();
    expect("mesh.node_name", mesh.node_name.to_string(), wanted.node.to_string());
    expect("mesh.tls.ca_path", shown(&mesh.tls.ca_path), shown(&wanted.files.ca_path));
    expect("mesh.tls.cert_path", shown(&mesh.tls.cert_path), shown(&wanted.files.cert_path));
    expect("mesh.tls.key_path", shown(&mesh.tls.key_path), shown(&wanted.files.key_path));
    if let Some(crl) = &config.proxy.crl_path {
        expect("proxy.crl_path", shown(crl), shown(&wanted.crl_path()));
    }
    match changes.is_empty() {
        true => Ok(Some(config)),
        false => Err(Failure::Said(format!(
            "{} is there and is kept, but differs from this join; change these keys in it (or move it away) and run \
             the command again, the token is still good:\n{}",
            path.display(),
            changes.join("\n")
        ))),
    }
}

/// What a configuration that is kept lacks of what the CA said.
pub fn remarks(config: &Config, enrolled: &Enrolled, here: Option<&NodeName>) -> Vec<String> {
    let mesh = &config.mesh;
    let mut remarks = Vec::new();
    if let Some(ca) = here.or(enrolled.ca_node.as_ref())
        && mesh.ca_node.as_ref() != Some(ca)
    {
        remarks.push(format!("set mesh.ca.node: {ca}, or the certificate is not renewed by itself"));
    }
    if mesh.trust_domain != enrolled.trust_domain {
        remarks.push(format!("set mesh.trust_domain: {}", enrolled.trust_domain));
    }
    if let (None, Some(seed)) = (&mesh.discovery, &enrolled.seed) {
        remarks.push(format!(
            "without mesh.discovery, this node finds the others only if they share {}; else set mode: seed, seed_host: \
             {}.mesh, seed_port: {}",
            mesh.registry_path().display(),
            seed.node,
            seed.port
        ));
    }
    if config.proxy.crl_path.is_none() && !enrolled.crl.is_empty() {
        remarks
            .push("set proxy.crl_path, so that peers whose revocation list has expired are refused".into());
    }
    remarks
}

/// Says before the token is spent what is wrong with the settings.
///
/// # Errors
/// All mistakes at once.
pub fn check_settings(settings: &[Setting], wanted: &Wanted) -> Result<(), Failure> {
    let text = text(&document(wanted, None, None, &[], settings)?);
    parsed(&text)
}

fn parsed(text: &str) -> Result<(), Failure> {
    Config::parse(text).map(drop).map_err(|mistakes| {
        let mistakes: Vec<_> =
            mistakes.iter().map(|mistake| format!("  {}: {}", mistake.key, mistake.message)).collect();
        Failure::Usage(format!("the configuration would not work; look at --set:\n{}", mistakes.join("\n")))
    })
}

/// Makes the configuration. `here`: this node, if the CA's process is on this host.
///
/// # Errors
/// It would not work, or cannot be written.
pub fn write(
    path: &Path,
    wanted: &Wanted,
    enrolled: &Enrolled,
    here: Option<&NodeName>,
    leaf: &Leaf,
    settings: &[Setting],
) -> Result<(), Failure> {
    let hosted = leaf.hosts(&enrolled.trust_domain);
    let agents: Vec<String> = hosted.iter().map(ToString::to_string).collect();
    let text = text(&document(wanted, Some(enrolled), here, &agents, settings)?);
    parsed(&text)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(files::cannot("make the folder", folder))?;
    // Both daemons and operators read it; there is no secret in it.
    files::write(path, text.as_bytes(), 0o644, None)
}

fn document(
    wanted: &Wanted,
    enrolled: Option<&Enrolled>,
    here: Option<&NodeName>,
    agents: &[String],
    settings: &[Setting],
) -> Result<Map<String, Value>, Failure> {
    let Wanted { node, files, state_dir } = wanted;
    let mut mesh = json!({
        "enabled": true,
        "node_name": node,
        "tls": {"ca_path": files.ca_path, "cert_path": files.cert_path, "key_path": files.key_path},
        "storage_dir": STORAGE_DIR,
    });
    let mut proxy = json!({ "state_dir": state_dir });
    if let Some(enrolled) = enrolled {
        mesh["trust_domain"] = json!(enrolled.trust_domain);
        if let Some(ca) = here.or(enrolled.ca_node.as_ref()) {
            mesh["ca"] = json!({ "node": ca });
        }
        match enrolled.seed.as_ref().filter(|seed| seed.node != *node) {
            Some(seed) => {
                mesh["discovery"] = seed_of(&seed.node, seed.port);
                mesh["peers"] = json!([{"name": seed.node, "host": seed.host, "port": seed.port}]);
            }
            // The first node: the others will come to it.
            None => mesh["discovery"] = seed_of(node, 3000),
        }
        if !enrolled.crl.is_empty() {
            proxy["crl_path"] = json!(wanted.crl_path());
        }
    }
    let mut sections = Map::new();
    sections.insert("mesh".into(), mesh);
    sections.insert("proxy".into(), proxy);
    sections.insert("registryd".into(), json!({}));
    if !agents.is_empty() {
        sections["registryd"]["agents"] = json!(agents);
    }
    let mut root = Value::Object(sections);
    for Setting { path, value } in settings {
        let mut place = &mut root;
        for part in path {
            if place.is_null() {
                *place = json!({});
            }
            let Value::Object(section) = place else {
                return Err(Failure::Usage(format!(
                    "--set {}: is inside a key that is not a section",
                    path.join(".")
                )));
            };
            place = section.entry(part).or_insert(Value::Null);
        }
        *place = value.clone();
    }
    match root {
        Value::Object(sections) => Ok(sections),
        _ => Ok(Map::new()),
    }
}

fn seed_of(node: &NodeName, port: u16) -> Value {
    json!({ "mode": "seed", "seed_host": node.mesh_host(), "seed_port": port })
}

/// Sections and keys in YAML, values in JSON, which is YAML too.
fn text(sections: &Map<String, Value>) -> String {
    let mut text = String::from(
        "# Made by `meshctl join`. What else can stand here: deploy/mesh.yaml. Check with: mesh-proxy check && registryd check\n",
    );
    for (name, section) in sections {
        let Some(keys) = section.as_object().filter(|keys| !keys.is_empty()) else { continue };
        text.push_str(&format!("{name}:\n"));
        for (key, value) in keys {
            text.push_str(&format!("  {key}: {value}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use mesh_shared::config::Discovery;

    use super::*;

    fn wanted() -> Wanted {
        let tls = Path::new("/var/lib/mesh-proxy/tls");
        Wanted {
            node: "ct112".parse().unwrap(),
            files: TlsFiles {
                ca_path: tls.join("ca-chain.pem"),
                cert_path: tls.join("current/node.crt"),
                key_path: tls.join("current/node.key"),
            },
            state_dir: "/var/lib/mesh-proxy".into(),
        }
    }

    fn enrolled() -> Enrolled {
        serde_json::from_value(json!({
            "certificate": "", "chain": "", "crl": "L", "trustDomain": "example.org", "caNode": "ct110",
            "seed": {"node": "ct110", "host": "192.168.10.110", "port": 3100},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_made_says_what_the_ca_said() {
        let settings = ["mesh.storage_dir=/srv/a b", "proxy.limits.max_streams=9", "registryd.role=agent"]
            .map(|text| text.parse().unwrap());
        let made = document(&wanted(), Some(&enrolled()), None, &["grok".into()], &settings).unwrap();
        let config = Config::parse(&text(&made)).unwrap();
        let mesh = &config.mesh;
        assert_eq!((mesh.node_name.as_str(), mesh.tls.clone()), ("ct112", wanted().files));
        assert_eq!(mesh.ca_node.as_ref().unwrap().as_str(), "ct110");
        assert_eq!(mesh.trust_domain.as_str(), "example.org");
        assert_eq!(mesh.storage_dir, Path::new("/srv/a b"));
        let Some(Discovery::Seed(seed)) = &mesh.discovery else { panic!("{:?}", mesh.discovery) };
        assert_eq!((seed.node.as_str(), seed.port), ("ct110", 3100));
        assert_eq!((mesh.peers[0].host.as_str(), mesh.peers[0].port), ("192.168.10.110", 3100));
        assert_eq!(config.proxy.crl_path, Some(wanted().crl_path()));
        assert!(remarks(&config, &enrolled(), None).is_empty());
    }

    #[test]
    fn the_first_node_is_its_own_seed() {
        let first = Enrolled { ca_node: None, seed: None, ..enrolled() };
        let made = document(&wanted(), Some(&first), Some(&wanted().node), &[], &[]).unwrap();
        let config = Config::parse(&text(&made)).unwrap();
        assert_eq!(config.mesh.ca_node, Some(wanted().node));
        assert!(config.mesh.peers.is_empty());
        assert!(matches!(config.mesh.discovery, Some(Discovery::Seed(seed)) if seed.node == wanted().node));
    }

    #[test]
    fn settings_that_cannot_work_are_told() {
        for bad in ["", "mesh", "mesh=1", ".a=1", "mesh.=1"] {
            assert!(bad.parse::<Setting>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["mesh.nonsense=1", "mesh.node_name.x=1", "proxy.threads=zero"] {
            assert!(check_settings(&[bad.parse().unwrap()], &wanted()).is_err(), "{bad} was accepted");
        }
    }
}
