//! A real etcd cluster of three members on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::eventually;
use crate::loopback::Loopback;
use crate::process::{self, Daemon};

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The files that make a cluster speak TLS.
#[derive(Clone)]
pub struct Tls {
    /// The CA of members and clients.
    pub ca: PathBuf,
    /// The members' certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Three members. They end with this value.
pub struct Cluster {
    members: Vec<Member>,
    folder: PathBuf,
    tls: Option<Tls>,
}

struct Member {
    name: String,
    address: Loopback,
    daemon: Option<Daemon>,
}

impl Cluster {
    /// Starts three members with data below `folder` and waits until they serve.
    pub async fn start(folder: &Path) -> Self {
        Self::start_at(folder, (0..3).map(|_| Loopback::take()).collect(), None).await
    }

    /// The same at addresses that were taken before, with TLS.
    pub async fn start_at(folder: &Path, addresses: Vec<Loopback>, tls: Option<Tls>) -> Self {
        let members = addresses.into_iter().enumerate();
        let members = members.map(|(i, address)| Member { name: format!("m{i}"), address, daemon: None });
        let mut cluster = Self { members: members.collect(), folder: folder.join("etcd"), tls };
        cluster.start_all();
        cluster.serves().await;
        cluster
    }

    /// Starts those that do not run.
    pub fn start_all(&mut self) {
        (0..self.members.len()).for_each(|i| self.start_member(i));
    }

    /// Starts one member, with the data that it has.
    pub fn start_member(&mut self, i: usize) {
        let peer = |member: &Member| format!("http://{}", member.address.port(PEER_PORT));
        let all: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, peer(member))).collect();
        let scheme = self.scheme();
        let member = &mut self.members[i];
        if member.daemon.is_some() {
            return;
        }
        let client = format!("{scheme}://{}", member.address.port(CLIENT_PORT));
        let peer = format!("http://{}", member.address.port(PEER_PORT));
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--initial-cluster", &all.join(",")]);
        command.arg("--data-dir").arg(self.folder.join(&member.name));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"]);
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
        }
        fs::create_dir_all(&self.folder).unwrap();
        member.daemon = Some(Daemon::start(&format!("etcd {}", member.name), &mut command));
    }

    /// Ends one member as `kill -9` does.
    pub fn kill_member(&mut self, i: usize) {
        if let Some(mut daemon) = self.members[i].daemon.take() {
            daemon.kill();
        }
    }

    /// Ends all members.
    pub fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|i| self.kill_member(i));
    }

    /// Waits until a majority serves.
    pub async fn serves(&self) {
        eventually("etcd serves", async || {
            let output = self.etcdctl(&["endpoint", "health", "--cluster=false"]).output().unwrap();
            let running = self.members.iter().filter(|member| member.daemon.is_some()).count();
            let healthy = process::text(&output.stdout) + &process::text(&output.stderr);
            (healthy.matches("is healthy").count() == running).then_some(())
        })
        .await;
    }

    /// The members' addresses for clients, of those that run.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.address.port(CLIENT_PORT)).collect()
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The members as URLs.
    pub fn urls(&self) -> Vec<String> {
        self.endpoints().iter().map(|endpoint| format!("{}://{endpoint}", self.scheme())).collect()
    }

    /// `registryd.store` for this cluster.
    pub fn store(&self) -> Value {
        let mut store = json!({"kind": "etcd", "etcd": {"endpoints": self.urls(), "prefix": "/mesh"}});
        if let Some(tls) = &self.tls {
            store["etcd"]["ca_path"] = json!(tls.ca);
        }
        store
    }

    /// etcdctl for the members that run.
    pub fn etcdctl(&self, arguments: &[&str]) -> Command {
        let running = self.members.iter().filter(|member| member.daemon.is_some());
        let urls: Vec<String> = running
            .map(|member| format!("{}://{}", self.scheme(), member.address.port(CLIENT_PORT)))
            .collect();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", urls.join(","));
        if let Some(tls) = &self.tls {
            command.env("ETCDCTL_CACERT", &tls.ca);
        }
        command.args(arguments);
        command
    }

    /// What etcdctl prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        process::succeed(&mut self.etcdctl(arguments))
    }

    /// The entry of a node.
    pub fn entry(&self, node: &str) -> Option<Value> {
        let text = self.ctl(&["get", "--print-value-only", &format!("/mesh/nodes/{node}")]);
        (!text.trim().is_empty()).then(|| serde_json::from_str(&text).unwrap())
    }

    /// Who renews a node's lease.
    pub fn alive(&self, node: &str) -> Option<String> {
        let text = self.ctl(&["get", "--print-value-only", &format!("/mesh/alive/{node}")]);
        (!text.trim().is_empty()).then(|| text.trim().to_owned())
    }

    /// The revision of the store.
    pub fn revision(&self) -> i64 {
        let text = self.ctl(&["get", "/mesh/none", "-w", "json"]);
        serde_json::from_str::<Value>(&text).unwrap()["header"]["revision"].as_i64().unwrap()
    }
}
