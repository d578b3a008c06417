//! The mesh as a whole, as this host sees it. Pure: takes what was gathered, and returns findings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_shared::NodeName;
use mesh_shared::config::Config;
use mesh_shared::local_api::{DaemonStatus, NodeView, SeenCertificates};
use mesh_shared::material::Coverage;
use mesh_shared::registry::Status;
use rustls::pki_types::UnixTime;

use super::expiry;
use super::hosting::{self, Diagnosis};
use super::report::{Finding, Step};
use crate::output::duration;
use crate::ping::Outcome as Pinged;

/// So many nodes are named one by one for the same reason.
const MOST_NAMED: usize = 32;

/// What was gathered of the mesh.
pub struct Mesh<'m> {
    /// This node's configuration.
    pub config: &'m Config,
    /// What registryd says of itself.
    pub status: &'m DaemonStatus,
    /// All nodes.
    pub views: &'m [NodeView],
    /// How it went with each of them that is not offline.
    pub pinged: &'m [Pinged],
    /// Their certificates.
    pub seen: &'m SeenCertificates,
}

impl Mesh<'_> {
    /// Everything behind this host's own steps, and how registry and certificates agree.
    pub fn findings(&self, now: UnixTime) -> (Vec<Finding>, Diagnosis) {
        let diagnosis = self.hosting();
        let groups = [
            self.registry(),
            self.duplicates(),
            self.reach(),
            self.versions(),
            self.thresholds(),
            self.clocks(),
            self.expiry(now),
            vec![self.lists(now)],
            diagnosis.findings(),
        ];
        (groups.into_iter().flatten().collect(), diagnosis)
    }

    /// Which nodes do not take part as they should.
    fn registry(&self) -> Vec<Finding> {
        let step = Step::Registry;
        let finding = |view: &NodeView| {
            let name = &view.node.name;
            let seen = view.age_ms.map_or_else(|| "never".into(), |age| format!("{} ago", duration(age)));
            let state = format!("{name} is {}, heard of {seen}", view.node.status.as_str());
            let finding = match view.node.status {
                Status::Online => return None,
                Status::Degraded => Finding::warn(step, state)
                    .because("its agent's server or its mesh-proxy does not answer there")
                    .run_on(name.as_str(), "sudo meshctl status"),
                Status::Updating => Finding::warn(step, state)
                    .because("its operator has set this, or its mesh-proxy is stopping")
                    .run_on(name.as_str(), "sudo meshctl status set online"),
                Status::Offline => Finding::fail(step, state)
                    .because("it is down or cannot write the registry; if it is gone for good: sudo meshctl nodes forget")
                    .run_on(name.as_str(), "sudo systemctl start registryd mesh-proxy && sudo meshctl status"),
            };
            Some(Finding { node: Some(name.clone()), ..finding })
        };
        let found: Vec<Finding> = self.views.iter().filter_map(finding).collect();
        or_ok(found, step, || format!("{} nodes, all online", self.views.len()))
    }

    fn duplicates(&self) -> Vec<Finding> {
        let finding = |name: &NodeName| {
            let said = self
                .status
                .problems
                .iter()
                .find(|problem| problem.contains(&format!("call themselves {name},")));
            let finding = Finding::fail(Step::Duplicates, format!("two hosts call themselves {name}"));
            let finding = Finding { node: Some(name.to_string()), ..finding };
            match said {
                Some(said) => finding.because(said.clone()),
                None => finding,
            }
            .run_on(
                "one of the two",
                "sudoedit /etc/mesh/mesh.yaml && sudo systemctl restart registryd mesh-proxy",
            )
        };
        let found = self.status.duplicates.iter().map(finding).collect();
        or_ok(found, Step::Duplicates, || "no two hosts have the same name".into())
    }

    /// Nodes that count as there and cannot be reached.
    fn reach(&self) -> Vec<Finding> {
        let step = Step::Reach;
        let finding = |pinged: &Pinged| {
            if pinged.ok {
                return None;
            }
            let name = &pinged.node;
            let finding = match &pinged.code {
                Some(code) => Finding::fail(step, format!("{name} cannot be reached: {code}")),
                None if !pinged.answered => {
                    Finding::fail(step, format!("mesh-proxy has no answer for {name}"))
                }
                None => Finding::warn(step, format!("{name} answers, but not as a node of the mesh does")),
            };
            let finding = match &pinged.detail {
                Some(detail) => finding.because(detail.clone()),
                None => finding,
            };
            let finding = finding.run(format!("meshctl doctor {name}")).coded(pinged.code.as_deref());
            Some(Finding { node: Some(name.clone()), ..finding })
        };
        let found: Vec<Finding> = self.pinged.iter().filter_map(finding).collect();
        or_ok(found, step, || "each node that is not offline answers over mutual TLS".into())
    }

    /// Programs of other projects have versions of their own.
    fn versions(&self) -> Vec<Finding> {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for view in self.views.iter().filter(|view| view.node.is_of_registryd()) {
            versions.entry(&view.node.version).or_default().push(&view.node.name);
        }
        let mut found = Vec::new();
        if versions.len() > 1 {
            let shown = versions.iter().map(|(version, nodes)| format!("{version} on {}", some(nodes)));
            let finding = format!("the nodes have {} versions of registryd", versions.len());
            found.push(
                Finding::warn(Step::Versions, finding)
                    .because(shown.collect::<Vec<_>>().join("; "))
                    .run_on("those that are behind", "sudo apt upgrade && sudo meshctl upgrade"),
            );
        }
        let one = versions.keys().next().copied().unwrap_or("none");
        or_ok(found, Step::Versions, || format!("all nodes have registryd {one}"))
    }

    fn thresholds(&self) -> Vec<Finding> {
        let (step, mesh) = (Step::Thresholds, &self.config.mesh);
        let (beat, stale) = (mesh.heartbeat_interval, mesh.stale_threshold);
        let ms = |time: Duration| duration(time.as_millis() as u64);
        let restart = "sudo systemctl restart registryd";
        let mut found = Vec::new();
        if stale < beat * 2 {
            found.push(
                Finding::warn(
                    step,
                    format!(
                        "one heartbeat that is lost makes this node offline: one every {}, offline after {}",
                        ms(beat),
                        ms(stale)
                    ),
                )
                .because("mesh.stale_threshold_ms is less than twice mesh.heartbeat_interval_ms")
                .run(format!("sudoedit /etc/mesh/mesh.yaml && {restart}")),
            );
        }
        for view in
            self.views.iter().filter(|view| view.node.status != Status::Offline && view.node.heartbeats())
        {
            let name = &view.node.name;
            let ttl = view.node.ttl();
            if view.local {
                if ttl.is_some_and(|ttl| ttl != stale) {
                    let said = ms(ttl.unwrap_or_default());
                    found.push(
                        Finding::warn(
                            step,
                            format!(
                                "this node says that it is offline after {said}, the configuration says {}",
                                ms(stale)
                            ),
                        )
                        .because("registryd was not restarted after the configuration was changed")
                        .run(restart),
                    );
                }
                continue;
            }
            let ttl = ttl.unwrap_or(stale);
            let age = Duration::from_millis(view.age_ms.unwrap_or(0));
            if age > ttl * 2 / 3 {
                let finding = Finding::warn(step, format!("{name} was last heard of {} ago and counts as offline after {}", ms(age), ms(ttl)))
                    .because("its heartbeats come late: its threshold is short for its interval, or its storage is slow")
                    .run_on(name.as_str(), "sudo meshctl doctor");
                found.push(Finding { node: Some(name.clone()), ..finding });
            }
        }
        found.truncate(MOST_NAMED);
        or_ok(found, step, || {
            format!("a heartbeat every {}, offline after {}; all come in time", ms(beat), ms(stale))
        })
    }

    fn clocks(&self) -> Vec<Finding> {
        let online = self.views.iter().filter(|view| view.node.status != Status::Offline);
        let found: Vec<Finding> =
            online.filter_map(|view| expiry::clock(view, self.config.mesh.heartbeat_interval)).collect();
        or_ok(found, Step::Clock, || "no node's clock is far from this host's".into())
    }

    fn expiry(&self, now: UnixTime) -> Vec<Finding> {
        let registered: BTreeSet<&str> = self.views.iter().map(|view| view.node.name.as_str()).collect();
        let nodes = self.seen.nodes.iter().filter(|seen| registered.contains(seen.node.as_str()));
        let found: Vec<Finding> = nodes
            .clone()
            .filter_map(|seen| expiry::certificate(Step::Expiry, self.config, seen, now))
            .collect();
        let first = nodes.map(|seen| seen.not_after - now.as_secs() as i64).min();
        or_ok(found, Step::Expiry, || match first {
            Some(left) => {
                let left = duration(left.max(0).unsigned_abs().saturating_mul(1_000));
                format!("no certificate that was seen ends soon, the first in {left}")
            }
            None => "no certificate was seen".into(),
        })
    }

    fn lists(&self, now: UnixTime) -> Finding {
        let ends = self.status.sidecar.as_ref().and_then(|sidecar| sidecar.crl_ends);
        expiry::lists(ends, Coverage::of(self.config) == Coverage::Required, now)
    }

    fn hosting(&self) -> Diagnosis {
        let registered =
            self.views.iter().map(|view| (view.node.name.clone(), view.node.agents.clone())).collect();
        let reached =
            self.pinged.iter().filter(|pinged| pinged.ok).map(|pinged| pinged.node.as_str()).collect();
        hosting::judge(self.config, &registered, &reached, self.seen)
    }
}

/// What was found, or that all is well.
fn or_ok(found: Vec<Finding>, step: Step, ok: impl FnOnce() -> String) -> Vec<Finding> {
    if found.is_empty() { vec![Finding::ok(step, ok())] } else { found }
}

fn some(names: &[&str]) -> String {
    let shown = names.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
