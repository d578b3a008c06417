//! The way from this host to one node: registry, name, TCP, TLS, CN and SAN, policy, answer.
//!
//! The sidecar pings the node first, since it alone has this node's key. Only where it cannot connect, meshctl connects itself,
//! so that a healthy node receives nothing but a ping.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use mesh_client::ClientError;
use mesh_shared::certificate::{Leaf, Role, describe, issuer};
use mesh_shared::config::Config;
use mesh_shared::local_api::{MESH_AGENT, MESH_ERROR, NodeView, PING, SeenCertificate};
use mesh_shared::material::Material;
use mesh_shared::policy::Action;
use mesh_shared::registry::Status;
use mesh_shared::{AgentName, Identity, NodeName, revocation};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error as TlsError};

use super::dial::{self, Shown};
use super::expiry;
use super::here::Here;
use super::mend::{self, CA_HOST};
use super::report::{Finding, Outcome, Report, Step};
use crate::output::{Progress, duration, one_line};
use crate::ping::{self, Outcome as Pinged};
use crate::policy;

/// Where A2A agents have their card; any other agent says that there is none, which is an answer too.
pub const CARD: &str = "/.well-known/agent-card.json";
/// Where agents take tasks.
const MESSAGE: &str = "/api/message";
/// How long an agent may take for it.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
/// Cards have some kilobytes.
const MOST_BYTES: usize = 256 << 10;
/// So many agents of one node are asked.
const MOST_AGENTS: usize = 8;

/// One node, and what is known of the way there.
pub struct Way<'h> {
    here: &'h Here,
    node: NodeName,
    view: NodeView,
    /// The agents there that are asked.
    agents: Vec<AgentName>,
    pinged: Pinged,
    seen: Option<SeenCertificate>,
}

impl<'h> Way<'h> {
    /// Lets the sidecar go the way to `view`'s node, of whose agents only this one is asked, or else all.
    pub async fn new(here: &'h Here, node: NodeName, view: NodeView, agent: Option<&AgentName>) -> Self {
        let agents = match agent {
            Some(agent) => vec![agent.clone()],
            // Others write into the registry; a name that is none cannot be asked for.
            None => view.node.agents.iter().filter_map(|name| name.parse().ok()).take(MOST_AGENTS).collect(),
        };
        let pinged = ping::ping(&here.sidecar, node.as_str()).await;
        let seen = here.certificates().await.ok();
        let seen = seen.and_then(|seen| seen.nodes.into_iter().find(|seen| seen.node == node));
        Self { here, node, view, agents, pinged, seen }
    }

    /// All steps behind this host's own.
    pub async fn go(&self, progress: &Progress, report: &mut Report) {
        const STEPS: [Step; 8] = [
            Step::Registry,
            Step::Clock,
            Step::Name,
            Step::Tcp,
            Step::Tls,
            Step::Identity,
            Step::Policy,
            Step::Answer,
        ];
        let rest = |from: usize| &STEPS[from..];
        progress.say(&format!("the way to {}", self.node));
        if !self.pinged.answered {
            report.add(
                Finding::fail(Step::Sidecar, format!("no answer to a ping of {}", self.node))
                    .because(self.detail())
                    .run("sudo systemctl restart mesh-proxy"),
            );
            return report.skip(rest(0));
        }
        if !report.add(self.registry()) {
            return report.skip(rest(1));
        }
        report.add(self.clock());
        if !report.add(self.name()) {
            return report.skip(rest(3));
        }
        let connection = self.connection().await;
        let reached = connection.len();
        let goes_on = report.extend(connection);
        // TCP, TLS, CN and SAN: those behind the last that was looked at.
        if !goes_on {
            return report.skip(rest(3 + reached));
        }
        if !report.extend(self.policy_here()) || !report.extend(self.policy_there()) {
            return report.skip(&[Step::Answer]);
        }
        progress.say(&format!("the answer of {}", self.node));
        report.extend(self.answers().await);
    }

    fn registry(&self) -> Finding {
        let (step, node, view) = (Step::Registry, &self.node, &self.view);
        let seen = view.age_ms.map_or_else(|| "never".into(), |age| format!("{} ago", duration(age)));
        let agents = match view.node.agents.as_slice() {
            [] => "without agents".into(),
            agents => format!("with {}", agents.join(", ")),
        };
        match view.node.status {
            _ if matches!(self.pinged.code.as_deref(), Some("no_roster" | "unknown_node")) => {
                Finding::fail(step, format!("mesh-proxy does not know {node}, registryd does"))
                    .because(self.detail())
                    .run("sudo systemctl restart mesh-proxy")
                    .coded(self.pinged.code.as_deref())
            }
            Status::Offline if self.pinged.ok => {
                Finding::fail(step, format!("{node} is offline, heard of {seen}"))
                    .because(
                        "its mesh-proxy answers, so its registryd is not running or cannot write the registry",
                    )
                    .run_on(node.as_str(), "sudo systemctl start registryd && sudo meshctl status")
            }
            Status::Offline => Finding::fail(step, format!("{node} is offline, heard of {seen}"))
                .because(self.detail())
                .run_on(node.as_str(), "sudo systemctl start registryd mesh-proxy && sudo meshctl status")
                .coded(self.pinged.code.as_deref()),
            Status::Degraded => Finding::warn(step, format!("{node} is degraded, {agents}, heard of {seen}"))
                .because("its agent's server or its mesh-proxy does not answer there")
                .run_on(node.as_str(), "sudo meshctl status"),
            Status::Updating => Finding::warn(step, format!("{node} is updating, {agents}, heard of {seen}"))
                .because("its operator has set this, or its mesh-proxy is stopping; it takes no tasks by agent name")
                .run_on(node.as_str(), "sudo meshctl status set online"),
            Status::Online => Finding::ok(step, format!("{node} is online, {agents}, heard of {seen}")),
        }
    }

    fn clock(&self) -> Finding {
        expiry::clock(&self.view, self.here.config.mesh.heartbeat_interval).unwrap_or_else(|| {
            let skew = self.view.skew_ms;
            let skew = skew.map_or_else(|| "not observed yet".into(), |skew| duration(skew.unsigned_abs()));
            Finding::ok(Step::Clock, format!("the clock of {} is like this host's ({skew})", self.node))
        })
    }

    fn name(&self) -> Finding {
        let (step, host) = (Step::Name, self.node.mesh_host());
        if self.view.addresses.is_empty() || self.pinged.code.as_deref() == Some("peer_unresolved") {
            return Finding::fail(step, format!("{host} has no address"))
                .because(self.detail())
                .run_on(
                    self.node.as_str(),
                    "sudoedit /etc/mesh/mesh.yaml && sudo systemctl restart registryd  # mesh.advertise_host: \
                     an address that other hosts reach",
                )
                .coded(self.pinged.code.as_deref());
        }
        Finding::ok(step, format!("{host} is {}, port {}", listed(&self.view.addresses), self.view.node.port))
    }

    /// TCP, TLS, and whom the certificate names, up to the first that fails.
    async fn connection(&self) -> Vec<Finding> {
        let not_connected = [
            "peer_unreachable",
            "peer_timeout",
            "peer_untrusted",
            "peer_identity_mismatch",
            "peer_refused_us",
            "peer_failed",
        ];
        match self.pinged.code.as_deref() {
            Some(code) if not_connected.contains(&code) => self.look_from_outside(code).await,
            // Even a refusal came over a connection that both sides had verified. Where there is no code, the sidecar or
            // the other side did not answer as it should, which is told below.
            _ => self.proved(),
        }
    }

    fn proved(&self) -> Vec<Finding> {
        let (node, port) = (&self.node, self.view.node.port);
        let tls = match &self.seen {
            Some(seen) => expiry::certificate(Step::Tls, &self.here.config, seen, UnixTime::now())
                .unwrap_or_else(|| {
                    let left = seen.not_after - UnixTime::now().as_secs() as i64;
                    let left = duration(left.max(0).unsigned_abs() * 1_000);
                    Finding::ok(
                        Step::Tls,
                        format!("mutual TLS works; the certificate of {node} ends in {left}"),
                    )
                }),
            None => Finding::ok(Step::Tls, "mutual TLS works"),
        };
        let own = self.pinged.cn.as_ref().map(|cn| format!(", and it sees this node as CN={cn}"));
        vec![
            Finding::ok(Step::Tcp, format!("port {port} accepts connections")),
            tls,
            Finding::ok(
                Step::Identity,
                format!("the certificate is for {node}.mesh and names {node}{}", own.unwrap_or_default()),
            ),
        ]
    }

    async fn look_from_outside(&self, code: &str) -> Vec<Finding> {
        let (node, port) = (&self.node, self.view.node.port);
        let mut failures = Vec::new();
        let mut connected = None;
        for ip in &self.view.addresses {
            let address = SocketAddr::new(*ip, port);
            match dial::connect(address).await {
                Ok(stream) => {
                    connected = Some((address, stream));
                    break;
                }
                Err(error) => failures.push((address, error)),
            }
        }
        let Some((address, stream)) = connected else {
            return vec![tcp_failed(node, &failures).coded(Some(code))];
        };
        let mut findings = vec![Finding::ok(Step::Tcp, format!("{address} accepts connections"))];
        let name = match ServerName::try_from(node.mesh_host()) {
            Ok(name) => name,
            Err(error) => {
                findings.push(Finding::fail(Step::Tls, format!("{node}.mesh: {error}")));
                return findings;
            }
        };
        let who_listens = format!("sudo ss -ltnp 'sport = :{port}'");
        match dial::certificate(stream, name).await {
            Shown::Silence => findings.push(
                Finding::fail(Step::Tls, format!("{address} accepts the connection but does not answer in TLS"))
                    .because(
                        "it hangs, or a firewall between drops large handshakes (then leave X25519MLKEM768 out of \
                         proxy.tls.groups here)",
                    )
                    .run_on(node.as_str(), who_listens)
                    .coded(Some(code)),
            ),
            Shown::Nothing(why) => findings.push(
                Finding::fail(Step::Tls, format!("{address} does not speak TLS as the mesh does"))
                    .because(format!("{why}: another program has that port, or the registered address is another host's"))
                    .run_on(node.as_str(), who_listens)
                    .coded(Some(code)),
            ),
            Shown::Chain(chain) => {
                let (tls, identity) = self.judge(&chain, code, address);
                let failed = tls.outcome == Outcome::Fail;
                findings.push(tls);
                if !failed {
                    findings.push(identity);
                }
            }
        }
        findings
    }

    /// What the certificate that is shown at `address` comes to, and what the sidecar's error says beyond that.
    fn judge(
        &self,
        chain: &[CertificateDer<'static>],
        code: &str,
        address: SocketAddr,
    ) -> (Finding, Finding) {
        let (node, config) = (&self.node, &self.here.config);
        let tls = |finding: &str| Finding::fail(Step::Tls, finding).coded(Some(code));
        let identity = |finding: String| Finding::fail(Step::Identity, finding).coded(Some(code));
        let renew = mend::certificate(config, node);
        let issue = mend::first_certificate(config, node);
        let shown = Finding::ok(Step::Tls, format!("{address} presents a certificate that this node trusts"));
        // What the sidecar knows of lists and mapped identities counts, so whatever is not found here is its finding.
        let by_sidecar = || Finding::fail(Step::Identity, self.detail()).coded(Some(code));
        match verified(config, chain, node) {
            Err(Untrusted::Certificate(error)) if !is_other_name(&error) => {
                let finding = tls(&format!("the certificate of {node} does not verify"));
                let finding = finding.because(format!("{}{}", describe(&error, Role::Server), signer(chain)));
                let finding = match error {
                    TlsError::InvalidCertificate(
                        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
                    ) => finding.run_on(node.as_str(), "sudo timedatectl set-ntp true"),
                    TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => {
                        finding.run_on(CA_HOST, issue)
                    }
                    _ => finding.run_on(CA_HOST, renew),
                };
                return (finding, by_sidecar());
            }
            Err(Untrusted::Here(why)) => {
                return (tls("this node's own trust bundle cannot be used").because(why), by_sidecar());
            }
            Ok(()) | Err(Untrusted::Certificate(_)) => {}
        }
        if code == "peer_refused_us" {
            let finding = tls(&format!("{node} refuses this node's certificate"))
                .because(format!(
                    "{}; its log says why, and its trust bundle may be of another CA",
                    self.detail()
                ))
                .run_on(
                    node.as_str(),
                    "sudo journalctl -u mesh-proxy -g 'TLS handshake failed' && sudo meshctl ca verify",
                );
            return (finding, by_sidecar());
        }
        if code == "peer_untrusted" {
            let finding = tls(&format!("the certificate of {node} is not accepted")).because(self.detail());
            return (finding.run_on(CA_HOST, renew), by_sidecar());
        }
        let leaf = chain.first().ok_or_else(|| "there is none".into()).and_then(|leaf| {
            Leaf::parse_with(leaf, &config.proxy.tls.spiffe).map_err(|error| error.to_string())
        });
        let leaf = match leaf {
            Ok(leaf) => leaf,
            Err(why) => {
                let finding =
                    identity("the certificate does not name a member of the mesh".into()).because(why);
                return (shown, finding.run_on(CA_HOST, issue));
            }
        };
        if leaf.identity != Identity::Node(node.clone()) {
            let finding = identity(format!("the server at {address} is {}, not {node}", leaf.identity))
                .because(format!("{node}.mesh, or the address that {node} registered, leads to another host"))
                .run(format!("getent hosts {node}.mesh; meshctl nodes --node {node} --wide"));
            return (shown, finding);
        }
        if !leaf.common_name.is_empty() && !leaf.dns_names.iter().any(|name| *name == node.mesh_host()) {
            let names = if leaf.dns_names.is_empty() { "no name".into() } else { leaf.dns_names.join(", ") };
            let finding = identity(format!("the certificate of {node} is not for {node}.mesh"))
                .because(format!("its subject alternative names have {names}"))
                .run_on(CA_HOST, issue);
            return (shown, finding);
        }
        // The connection fails for a reason that only the sidecar sees.
        let finding = tls(&format!("the connection to {node} fails")).because(self.detail());
        (finding.run_on(node.as_str(), "sudo journalctl -u mesh-proxy -n 50"), by_sidecar())
    }

    /// What this node's own policy makes of tasks for the node.
    fn policy_here(&self) -> Vec<Finding> {
        let asked: Vec<Option<&AgentName>> = match self.agents.as_slice() {
            [] => vec![None],
            agents => agents.iter().map(Some).collect(),
        };
        let config = &self.here.config;
        let mut questions = vec![(None, "GET", PING)];
        questions.extend(asked.into_iter().map(|agent| (agent, "POST", MESSAGE)));
        let refused = questions.into_iter().find_map(|(agent, method, path)| {
            let (action, by) = policy::outbound(config, &self.node, agent, method, path);
            (action == Action::Deny).then_some((agent, method, path, by))
        });
        refused.map_or_else(Vec::new, |(agent, method, path, by)| {
            let named = agent.map(|agent| format!(" --agent {agent}")).unwrap_or_default();
            let file = config.source.as_deref().unwrap_or(std::path::Path::new("/etc/mesh/mesh.yaml")).display();
            let finding = Finding::fail(Step::Policy, format!("this node refuses {method} {path} to {}", self.node))
                .because(by)
                .run(format!(
                    "sudoedit {file} && sudo systemctl reload mesh-proxy && meshctl policy explain {} {method} {path} \
                     --outbound{named}",
                    self.node
                ));
            vec![finding]
        })
    }

    /// What the other side's policy says, as far as a ping shows it.
    fn policy_there(&self) -> Vec<Finding> {
        let (node, own) = (&self.node, self.here.node());
        let Some(code @ ("peer_not_allowed" | "request_not_allowed" | "bad_request")) =
            self.pinged.code.as_deref()
        else {
            return Vec::new();
        };
        let finding = Finding::fail(Step::Policy, format!("{node} refuses this node"))
            .because(self.detail())
            .run_on(
                node.as_str(),
                format!(
                    "sudoedit /etc/mesh/mesh.yaml && sudo systemctl reload mesh-proxy && meshctl policy explain {own} POST \
                     {MESSAGE}"
                ),
            );
        vec![finding.coded(Some(code))]
    }

    /// The policy's outcome and the agents' own answers, or else that of the ping.
    async fn answers(&self) -> Vec<Finding> {
        let node = &self.node;
        if !self.pinged.ok {
            let policy = Finding::ok(Step::Policy, "this node's policy lets its requests pass");
            let finding =
                Finding::fail(Step::Answer, format!("{node} does not answer as a node of the mesh does"))
                    .because(self.detail())
                    .run_on(node.as_str(), "sudo meshctl status")
                    .coded(self.pinged.code.as_deref());
            return vec![policy, finding];
        }
        let latency = self.pinged.latency_ms.map(|ms| format!(" within {ms} ms")).unwrap_or_default();
        if self.agents.is_empty() {
            return vec![
                Finding::ok(Step::Policy, format!("this node's policy and that of {node} let a ping pass")),
                Finding::ok(Step::Answer, format!("{node} answers{latency}; no agent is registered there")),
            ];
        }
        let (mut policy, mut answers) = (Vec::new(), Vec::new());
        for agent in &self.agents {
            let finding = self.agent_answers(agent).await;
            if finding.step == Step::Policy { policy.push(finding) } else { answers.push(finding) }
        }
        if policy.is_empty() {
            policy.push(Finding::ok(
                Step::Policy,
                format!("this node's policy and that of {node} let requests pass"),
            ));
        }
        policy.into_iter().chain(answers).collect()
    }

    /// Asks for the agent's card, which costs nothing.
    async fn agent_answers(&self, agent: &AgentName) -> Finding {
        let (step, node, own) = (Step::Answer, &self.node, self.here.node());
        let (action, by) = policy::outbound(&self.here.config, node, Some(agent), "GET", CARD);
        if action == Action::Deny {
            let finding = format!(
                "{node} answers a ping; agent {agent} was not asked, since this node refuses GET {CARD} ({by})"
            );
            return Finding::ok(step, finding);
        }
        let mut headers = HeaderMap::new();
        if let Ok(agent) = HeaderValue::from_str(agent.as_str()) {
            headers.insert(MESH_AGENT, agent);
        }
        let path = format!("/nodes/{node}{CARD}");
        let sidecar = &self.here.sidecar;
        let asked =
            sidecar.send_within(ANSWER_LIMIT, MOST_BYTES, Method::GET, &path, headers, Bytes::new()).await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(ClientError::TooLarge { .. }) => {
                return Finding::ok(step, format!("agent {agent} on {node} answers with a large document"));
            }
            Err(error) => {
                return Finding::fail(step, format!("agent {agent} on {node} does not answer"))
                    .because(error.to_string())
                    .run_on(node.as_str(), "sudo meshctl status");
            }
        };
        let code = answer.headers.get(MESH_ERROR).and_then(|code| code.to_str().ok());
        let detail = answer.problem().map(|problem| problem.detail).unwrap_or_default();
        match code {
            None if answer.status.is_server_error() => Finding::warn(
                step,
                format!("agent {agent} on {node} answers GET {CARD} with {}", answer.status),
            )
            .run_on(node.as_str(), "sudo meshctl status"),
            None => {
                let what = match answer.status {
                    StatusCode::OK => "with its card or a page".into(),
                    status => format!("with {status}, as an agent without a card does"),
                };
                Finding::ok(step, format!("agent {agent} on {node} answers {what}"))
            }
            Some("request_not_allowed" | "peer_not_allowed") => {
                Finding::warn(Step::Policy, format!("{node} refuses GET {CARD} to {agent} from this node"))
                    .because(format!("{detail}; only that node can tell whether tasks pass"))
                    .run_on(
                        node.as_str(),
                        format!("meshctl policy explain {own} POST {MESSAGE} --agent {agent}"),
                    )
                    .coded(code)
            }
            Some("agent_not_certified") => {
                Finding::fail(step, format!("{node} is not certified for agent {agent}"))
                    .because(detail)
                    .run_on(CA_HOST, mend::hosting(&self.here.config, node.as_str(), &[agent.as_str()]))
                    .coded(code)
            }
            Some("agent_busy" | "too_many_requests" | "rate_limited" | "peer_busy") => {
                Finding::warn(step, format!("agent {agent} on {node} is busy")).because(detail).coded(code)
            }
            Some("backend_unreachable" | "backend_failed") => {
                Finding::fail(step, format!("agent {agent} on {node} is down"))
                    .because(format!("{detail} Start it there, as its own unit or container says"))
                    .run_on(node.as_str(), format!("sudo meshctl status  # once agent {agent} is started"))
                    .coded(code)
            }
            Some(_) => Finding::fail(step, format!("agent {agent} on {node} cannot be asked"))
                .because(detail)
                .run_on(node.as_str(), "sudo meshctl status")
                .coded(code),
        }
    }

    /// What the sidecar said of the ping.
    fn detail(&self) -> String {
        one_line(self.pinged.detail.as_deref().unwrap_or("its entry names no usable host"))
    }
}

fn listed(addresses: &[std::net::IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn tcp_failed(node: &NodeName, failures: &[(SocketAddr, std::io::Error)]) -> Finding {
    use std::io::ErrorKind;
    let tried: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    let (address, error) = match failures {
        [(address, error), ..] => (address.to_string(), error.kind()),
        [] => (format!("{node}.mesh"), ErrorKind::Other),
    };
    let finding = Finding::fail(Step::Tcp, format!("no connection to {address}"));
    let port = failures.first().map_or(3000, |(address, _)| address.port());
    match error {
        ErrorKind::ConnectionRefused => finding
            .because(format!(
                "nothing listens there ({}): mesh-proxy is stopped, or listens elsewhere",
                tried.join("; ")
            ))
            .run_on(node.as_str(), "sudo systemctl start mesh-proxy && sudo meshctl status"),
        ErrorKind::TimedOut => finding
            .because(format!("packets are dropped ({}): a firewall, or the host is down", tried.join("; ")))
            .run_on(node.as_str(), format!("sudo nft insert rule inet filter input tcp dport {port} accept")),
        _ => finding
            .because(format!("{}: there is no route, or the address is wrong", tried.join("; ")))
            .run(format!(
                "ip route get {}",
                failures.first().map_or_else(String::new, |(at, _)| at.ip().to_string())
            )),
    }
}

/// Why a certificate was not verified.
enum Untrusted {
    /// This node's own files.
    Here(String),
    /// The certificate.
    Certificate(TlsError),
}

/// Verifies a chain as the sidecar would, by the files that are configured and found.
fn verified(config: &Config, chain: &[CertificateDer<'static>], node: &NodeName) -> Result<(), Untrusted> {
    let here = |error: &dyn std::fmt::Display| Untrusted::Here(error.to_string());
    let mut material = Material::load(config).map_err(|error| here(&error))?;
    if config.proxy.crl_path.is_none() {
        let found = revocation::beside(&config.mesh.tls.ca_path);
        material.crls = found.iter().filter_map(|path| revocation::read(path).ok()).flatten().collect();
    }
    let now = UnixTime::now();
    let verifier = material.server_verifier(now).map_err(|error| here(&error))?;
    let name = ServerName::try_from(node.mesh_host()).map_err(|error| here(&error))?;
    let (leaf, rest) =
        chain.split_first().ok_or_else(|| Untrusted::Here("there is no certificate".into()))?;
    verifier.verify_server_cert(leaf, rest, &name, &[], now).map(drop).map_err(Untrusted::Certificate)
}

fn is_other_name(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

/// Who signed what is shown, in words behind a reason.
fn signer(chain: &[CertificateDer<'static>]) -> String {
    chain
        .first()
        .and_then(issuer)
        .map(|issuer| format!(" (it says that {} issued it)", one_line(&issuer)))
        .unwrap_or_default()
}
