//! Finding nodes on the local network by multicast DNS (RFC 6762) service discovery (RFC 6763).
//!
//! This node announces `<node>._rivetos._tcp.local.` with its inbound port and TXT `v=1`, `cn=<node>`,
//! `agents=<names>`, and reports what others announce. Anybody on the network can announce anything: a sighting is
//! a hint whom to ask, never more.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mdns_sd::{IfKind, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use mesh_shared::NodeName;
use mesh_shared::config::{Config, Registryd};
use mesh_shared::logging::{Excerpt, Quoted};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval_at, sleep, timeout};

use super::{Candidate, Sighting};
use crate::jitter;

/// The service type, as RivetOS has it.
const SERVICE: &str = "_rivetos._tcp.local.";
/// The version of the TXT record's contents.
const VERSION: &str = "1";
/// Most bytes of one TXT string, key included (RFC 6763, 6.1).
const TXT_MAX: usize = 255;
/// Most nodes remembered; a flood of announcements must not fill the memory.
const SEEN_MAX: usize = 1000;
/// New names that are taken in: in a row, and then each second. What is passed over is announced again.
const NEW_BURST: f64 = 200.0;
const NEW_PER_SECOND: f64 = 5.0;
/// How often everybody who is still announced is reported again: who was not ready the first time may be now.
const REMIND: Duration = Duration::from_secs(60);
/// Waits between attempts to start.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The goodbye is sent twice, this far apart at most (RFC 6762, 10.1; packets get lost).
const GOODBYE_TIME: Duration = Duration::from_millis(200);

/// What this node says of itself.
#[derive(Debug, Clone)]
pub struct Announcement {
    node: NodeName,
    port: u16,
    agents: Vec<String>,
    inbound: IpAddr,
    advertised: Option<IpAddr>,
}

impl Announcement {
    /// By the configuration. `mesh.advertise_host` counts where it is an address, else the one that the sidecar
    /// listens on, or, where that is all of them, each network's own.
    pub fn of(config: &Config) -> Self {
        Self {
            node: config.mesh.node_name.clone(),
            port: config.mesh.agent_channel_port,
            agents: agents_of(&config.registryd),
            inbound: config.proxy.inbound.address,
            advertised: config.mesh.advertise_host.as_ref().and_then(|host| host.parse().ok()),
        }
    }

    fn address(&self) -> Option<IpAddr> {
        self.advertised.or((!self.inbound.is_unspecified()).then_some(self.inbound))
    }

    /// Whether this node is reachable on this host only, as in tests and demos.
    fn is_local_only(&self) -> bool {
        self.address().is_some_and(|address| address.is_loopback())
    }

    fn service(&self) -> Result<ServiceInfo, mdns_sd::Error> {
        let properties = [("v", VERSION), ("cn", self.node.as_str()), ("agents", &agents_text(&self.agents))];
        // Not <node>.local, which avahi may already answer for with other addresses. A label ends at 63 bytes.
        let stem: String = self.node.as_str().chars().take(58).collect();
        let host = format!("{stem}-mesh.local.");
        let addresses: Vec<IpAddr> = self.address().into_iter().collect();
        let service =
            ServiceInfo::new(SERVICE, self.node.as_str(), &host, &addresses[..], self.port, &properties[..])?;
        if !addresses.is_empty() {
            return Ok(service);
        }
        let mut service = service.enable_addr_auto();
        if self.inbound.is_ipv4() {
            service.set_interfaces(vec![IfKind::IPv4]);
        }
        Ok(service)
    }

    /// Starts the engine on the networks that count: every one that is up, the loopback only for nodes that
    /// cannot be reached otherwise.
    fn start(&self) -> Result<Announced, mdns_sd::Error> {
        let daemon = ServiceDaemon::new()?;
        let loopback = vec![IfKind::LoopbackV4, IfKind::LoopbackV6];
        if self.is_local_only() {
            daemon.disable_interface(IfKind::All)?;
            daemon.enable_interface(loopback)?;
        } else {
            daemon.disable_interface(loopback)?;
        }
        let service = self.service()?;
        let fullname = service.get_fullname().to_owned();
        let events = daemon.browse(SERVICE)?;
        daemon.register(service)?;
        Ok(Announced { daemon, fullname, events })
    }
}

fn agents_of(registryd: &Registryd) -> Vec<String> {
    registryd.agents.iter().map(|agent| agent.name.clone()).collect()
}

/// As many whole names as fit one TXT string.
fn agents_text(agents: &[String]) -> String {
    let mut text = String::new();
    for agent in agents {
        if "agents=".len() + text.len() + 1 + agent.len() > TXT_MAX {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(agent);
    }
    text
}

struct Announced {
    daemon: ServiceDaemon,
    fullname: String,
    events: Receiver<ServiceEvent>,
}

impl Announced {
    /// Announces the same service with what is said of it now.
    fn update(&self, announcement: &Announcement) {
        match announcement.service().and_then(|service| self.daemon.register(service)) {
            Ok(()) => tracing::info!(target: "Discovery", "announcing {} again by mDNS", self.fullname),
            Err(error) => {
                tracing::warn!(target: "Discovery", "the new agents cannot be announced by mDNS: {error}");
            }
        }
    }

    async fn end(self) {
        if let Ok(done) = self.daemon.unregister(&self.fullname) {
            let _ = timeout(GOODBYE_TIME, done.recv_async()).await;
            sleep(GOODBYE_TIME).await;
        }
        if let Ok(ended) = self.daemon.shutdown() {
            let _ = timeout(GOODBYE_TIME, ended.recv_async()).await;
        }
    }
}

/// Announces and reports until `stop` is sent or dropped, then says goodbye. Announces again when this node has other
/// agents than before.
pub async fn run(
    mut announcement: Announcement,
    mut published: watch::Receiver<Arc<Registryd>>,
    sightings: mpsc::Sender<Sighting>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut failures = 0;
    let announced = loop {
        match announcement.start() {
            Ok(announced) => break announced,
            Err(error) => {
                failures += 1;
                let wait = jitter::backoff(failures, RETRY.0, RETRY.1);
                let seconds = wait.as_secs_f32().ceil();
                tracing::warn!(target: "Discovery", "mDNS cannot start: {error}; trying again in {seconds} s");
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = &mut stop => return,
                }
            }
        }
    };
    tracing::info!(target: "Discovery", "announcing {} by mDNS port={}", announced.fullname, announcement.port);
    let mut seen = Seen::new(&announcement, announced.fullname.clone());
    let mut remind = interval_at(Instant::now() + REMIND, REMIND);
    loop {
        let new: Vec<Sighting> = tokio::select! {
            event = announced.events.recv_async() => match event {
                Ok(event) => seen.take(event).into_iter().collect(),
                Err(_) => {
                    tracing::error!(target: "Discovery", "the mDNS engine ended by itself; restart registryd");
                    return;
                }
            },
            // The sender lives as long as the daemon.
            Ok(()) = published.changed() => {
                let agents = agents_of(&published.borrow_and_update());
                if agents != announcement.agents {
                    announcement.agents = agents;
                    announced.update(&announcement);
                }
                continue;
            }
            _ = remind.tick() => seen.nodes.values().cloned().map(Sighting::Found).collect(),
            _ = &mut stop => break,
        };
        for sighting in new {
            if sightings.send(sighting).await.is_err() {
                break;
            }
        }
    }
    announced.end().await;
}

/// Who is announced now, by full service name.
struct Seen {
    own: NodeName,
    own_fullname: String,
    local_only: bool,
    nodes: HashMap<String, Candidate>,
    complained: HashSet<String>,
    new_left: f64,
    new_at: Instant,
}

impl Seen {
    fn new(own: &Announcement, own_fullname: String) -> Self {
        Self {
            own: own.node.clone(),
            own_fullname,
            local_only: own.is_local_only(),
            nodes: HashMap::new(),
            complained: HashSet::new(),
            new_left: NEW_BURST,
            new_at: Instant::now(),
        }
    }

    fn take(&mut self, event: ServiceEvent) -> Option<Sighting> {
        match event {
            ServiceEvent::ServiceResolved(service) => self.found(&service),
            ServiceEvent::ServiceRemoved(_, fullname) => {
                let gone = self.nodes.remove(&fullname)?;
                // The same node under another service name is still there.
                let still = self.nodes.values().any(|node| node.name == gone.name);
                tracing::debug!(target: "Discovery", "the mDNS announcement of {} ended", gone.name);
                (!still).then_some(Sighting::Goodbye(gone.name))
            }
            _ => None,
        }
    }

    fn found(&mut self, service: &ResolvedService) -> Option<Sighting> {
        let fullname = service.get_fullname();
        let version = service.get_property_val_str("v").unwrap_or(VERSION);
        let instance = fullname.strip_suffix(SERVICE)?.trim_end_matches('.');
        let name: NodeName = match service.get_property_val_str("cn").unwrap_or(instance).parse() {
            Ok(name) if version == VERSION => name,
            Ok(_) => {
                self.complain(fullname, &format!("speaks version {version:?}, this is {VERSION}"));
                return None;
            }
            Err(error) => {
                self.complain(fullname, &error.to_string());
                return None;
            }
        };
        if name == self.own {
            if !fullname.eq_ignore_ascii_case(&self.own_fullname) {
                self.complain(fullname, "another host of this network announces this node's name");
            }
            return None;
        }
        let mut addresses: Vec<IpAddr> = service
            .get_addresses()
            .iter()
            .map(|address| address.to_ip_addr().to_canonical())
            .filter(|address| self.is_usable(address))
            .collect();
        // IPv4 first, so that `host` is one that everybody on the network has.
        addresses.sort();
        let host = addresses.first()?.to_string();
        if !self.nodes.contains_key(fullname) && !self.may_be_new() {
            return None;
        }
        if self.nodes.len() >= SEEN_MAX && !self.nodes.contains_key(fullname) {
            // A flood of names must not keep a new node out for as long as they are announced.
            let gone = self.nodes.keys().next().cloned();
            gone.map(|fullname| self.nodes.remove(&fullname));
        }
        let candidate = Candidate { name, host, addresses, port: service.get_port() };
        let known = self.nodes.insert(fullname.to_owned(), candidate.clone());
        if known.as_ref() == Some(&candidate) {
            return None;
        }
        tracing::debug!(target: "Discovery", "mDNS found {} at {} port={}", candidate.name, candidate.host, candidate.port);
        Some(Sighting::Found(candidate))
    }

    /// New names cost work on this node and on whoever is asked: so many in a row, and then so many a second.
    fn may_be_new(&mut self) -> bool {
        let now = Instant::now();
        let refilled = now.saturating_duration_since(self.new_at).as_secs_f64() * NEW_PER_SECOND;
        (self.new_left, self.new_at) = ((self.new_left + refilled).min(NEW_BURST), now);
        let may = self.new_left >= 1.0;
        if may {
            self.new_left -= 1.0;
        }
        may
    }

    /// A link-local IPv6 address means nothing without its interface; a loopback one is this host.
    fn is_usable(&self, address: &IpAddr) -> bool {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        !(link_local || address.is_unspecified() || address.is_multicast())
            && address.is_loopback() == self.local_only
    }

    /// Once for each announcement.
    fn complain(&mut self, fullname: &str, why: &str) {
        if self.complained.len() < SEEN_MAX && self.complained.insert(fullname.to_owned()) {
            let fullname = Quoted { text: fullname, max_chars: 120 };
            let why = Excerpt { text: why, max_chars: 200 };
            tracing::warn!(target: "Discovery", "the mDNS announcement {fullname} is ignored: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(node: &str, inbound: &str) -> Announcement {
        let (node, inbound) = (node.parse().unwrap(), inbound.parse().unwrap());
        Announcement { node, port: 3000, agents: vec!["opus".into()], inbound, advertised: None }
    }

    fn resolved(instance: &str, address: &str, txt: &[(&str, &str)]) -> ServiceEvent {
        let info = ServiceInfo::new(SERVICE, instance, "x.local.", address, 3001, txt).unwrap();
        ServiceEvent::ServiceResolved(Box::new(info.as_resolved_service()))
    }

    fn seen() -> Seen {
        let own = announcement("ct110", "::");
        Seen::new(&own, own.service().unwrap().get_fullname().to_owned())
    }

    #[test]
    fn a_peer_is_found_once_for_each_change_and_lost_at_its_goodbye() {
        let mut seen = seen();
        let txt = [("v", "1"), ("cn", "CT111")];
        let Some(Sighting::Found(found)) = seen.take(resolved("ct111", "fd00::1,192.168.1.9,fe80::1", &txt))
        else {
            panic!("not found");
        };
        assert_eq!((found.name.as_str(), found.host.as_str(), found.port), ("ct111", "192.168.1.9", 3001));
        assert_eq!(found.addresses.len(), 2);
        assert_eq!(seen.take(resolved("ct111", "fd00::1,192.168.1.9,fe80::1", &txt)), None);
        assert!(seen.take(resolved("ct111", "192.168.1.10", &txt)).is_some());
        let goodbye = ServiceEvent::ServiceRemoved(SERVICE.into(), format!("ct111.{SERVICE}"));
        assert_eq!(seen.take(goodbye.clone()), Some(Sighting::Goodbye("ct111".parse().unwrap())));
        assert_eq!(seen.take(goodbye), None);
    }

    #[test]
    fn what_is_ours_or_makes_no_sense_is_ignored() {
        let mut seen = seen();
        for event in [
            resolved("ct110", "192.168.1.1", &[("cn", "ct110")]),
            resolved("ct110 (2)", "192.168.1.2", &[("cn", "ct110")]),
            resolved("ct111", "192.168.1.9", &[("v", "2"), ("cn", "ct111")]),
            resolved("x", "192.168.1.9", &[("cn", "not a name")]),
            resolved("ct111", "127.0.0.1", &[("cn", "ct111")]),
        ] {
            assert_eq!(seen.take(event), None);
        }
        // Announced by a program that says less.
        assert!(seen.take(resolved("ct112", "192.168.1.9", &[])).is_some());
    }

    /// On the loopback, with the real engine on both sides.
    #[tokio::test]
    async fn other_agents_are_announced_anew() {
        let yaml =
            "{mesh: {enabled: true, node_name: mdns-here, tls: true}, registryd: {agents: [grok, scout]}}";
        let other = Config::parse(yaml).unwrap().registryd;
        let (publish, published) =
            watch::channel(Arc::new(Registryd { agents: Vec::new(), ..other.clone() }));
        let ((sightings, _sighted), (stop, stopped)) = (mpsc::channel(64), oneshot::channel());
        let here = announcement("mdns-here", "127.0.0.1");
        let running = tokio::spawn(run(here, published, sightings, stopped));
        let there = announcement("mdns-there", "127.0.0.1").start().unwrap();
        let told = async |wanted: &str| loop {
            if let Ok(ServiceEvent::ServiceResolved(service)) = there.events.recv_async().await
                && service.get_fullname().starts_with("mdns-here.")
                && service.get_property_val_str("agents") == Some(wanted)
            {
                return;
            }
        };
        let limit = Duration::from_secs(20);
        timeout(limit, told("opus")).await.expect("the first agents are announced");
        publish.send_replace(Arc::new(other));
        timeout(limit, told("grok,scout")).await.expect("the new agents are announced");
        drop(stop);
        running.await.unwrap();
        there.end().await;
    }

    #[test]
    fn too_many_agents_for_one_string_are_cut_between_names() {
        let agents: Vec<String> = (0..40).map(|i| format!("agent-{i:02}")).collect();
        let text = agents_text(&agents);
        assert!("agents=".len() + text.len() <= TXT_MAX && text.ends_with("agent-26"), "{text}");
        let long = Announcement { agents, ..announcement(&"n".repeat(63), "0.0.0.0") };
        assert!(long.service().is_ok());
    }
}
