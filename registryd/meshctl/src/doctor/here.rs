//! The first part of every way: this host's configuration, certificates and daemons.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use mesh_client::{ClientError, Daemon};
use mesh_shared::certificate;
use mesh_shared::check::{self, About, Check};
use mesh_shared::config::{Config, ConfigErrorCause};
use mesh_shared::local_api::{CERTIFICATES, DaemonStatus, STATUS, SeenCertificates};
use mesh_shared::{NodeName, json};
use nix::unistd::{Gid, Uid, User};
use rustls::pki_types::UnixTime;

use super::mend::{self, CA_HOST};
use super::report::{Finding, Outcome, Report, Step};
use crate::output::{Progress, duration};
use crate::{Failure, Global, status};

/// How long a daemon's own check may take: its folders may be on a mount that hangs.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// What the check of a daemon takes over from this process's environment, which may be root's.
const ENVIRONMENT: [&str; 6] = ["PATH", "LANG", "LC_ALL", "TERM", "NO_COLOR", "TZ"];
/// So many of registryd's own problems are enough.
const MOST_PROBLEMS: usize = 16;

/// This host, where everything up to its daemons works.
pub struct Here {
    /// The configuration.
    pub config: Config,
    /// registryd.
    pub registryd: Daemon,
    /// What it says of itself and of the sidecar.
    pub status: DaemonStatus,
    /// mesh-proxy's outbound side.
    pub sidecar: Daemon,
}

impl Here {
    /// This node.
    pub fn node(&self) -> &NodeName {
        &self.config.mesh.node_name
    }

    /// What the sidecar saw of the nodes' certificates.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn certificates(&self) -> Result<SeenCertificates, Failure> {
        Ok(seen_certificates(&self.sidecar).await?)
    }
}

/// Takes the steps of this host; `None`: one of them failed, and with it all that is behind it.
pub async fn look(global: &Global, progress: &Progress, report: &mut Report) -> Option<Here> {
    let all = [Step::Configuration, Step::Certificates, Step::Registryd, Step::Sidecar];
    progress.say("the configuration");
    let (finding, config) = configuration(global);
    report.add(finding);
    let Some(config) = config else {
        report.skip(&all[1..]);
        return None;
    };
    progress.say("certificates and folders of this node");
    if !report.extend(certificates(&config).await) {
        report.skip(&all[2..]);
        return None;
    }
    progress.say("registryd and mesh-proxy of this host");
    let registryd =
        Daemon::Registryd(global.socket.clone().unwrap_or_else(|| config.registryd.socket.clone()));
    let status = match registryd_status(&registryd).await {
        Ok(status) => status,
        Err(finding) => {
            report.add(*finding);
            report.skip(&all[3..]);
            return None;
        }
    };
    if !report.extend(registryd_findings(&config, &status)) {
        report.skip(&all[3..]);
        return None;
    }
    let (findings, sidecar) = sidecar_findings(&config, &status).await;
    if !report.extend(findings) {
        return None;
    }
    Some(Here { config, registryd, status, sidecar })
}

fn configuration(global: &Global) -> (Finding, Option<Config>) {
    let step = Step::Configuration;
    let config = match global.config() {
        Ok(Some(config)) => config,
        Ok(None) => {
            let finding = Finding::new(step, Outcome::Unknown, "there is no /etc/mesh/mesh.yaml")
                .because("this host is not a node, or its configuration is elsewhere (--config FILE)")
                .run_on(CA_HOST, "sudo meshctl invite <node>");
            return (finding, None);
        }
        Err(error) => {
            let path = error.path.display();
            let finding = match &error.cause {
                ConfigErrorCause::Unreadable(cause) => {
                    Finding::new(step, Outcome::Unknown, format!("cannot read {path}"))
                        .because(cause.to_string())
                        .run(format!("sudo ls -l {path}"))
                }
                ConfigErrorCause::Mistakes(mistakes) => {
                    let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                    Finding::fail(step, format!("{path} cannot be used"))
                        .because(mistakes.join("; "))
                        .run(format!("sudoedit {path} && mesh-proxy check --config {path}"))
                }
            };
            return (finding, None);
        }
    };
    let path = config.source.as_deref().unwrap_or(Path::new("")).display();
    let remarks = match config.warnings.len() {
        0 => String::new(),
        count => format!(", {count} remarks (mesh-proxy check tells them)"),
    };
    (Finding::ok(step, format!("{path}: this is node {}{remarks}", config.mesh.node_name)), Some(config))
}

/// Whose check it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    MeshProxy,
    Registryd,
}

async fn certificates(config: &Config) -> Vec<Finding> {
    let (mut checks, mut key) = (Vec::new(), false);
    for program in [Program::MeshProxy, Program::Registryd] {
        if let Some(own) = checked_by(program, config).await {
            key |= own.iter().any(|check| check.about == About::Key && check.outcome == check::Outcome::Ok);
            for check in own {
                let relevant =
                    check.about != About::Configuration && check.outcome != check::Outcome::Skipped;
                if relevant && !checks.iter().any(|(_, known)| *known == check) {
                    checks.push((program, check));
                }
            }
        }
    }
    if checks.is_empty() {
        checks.extend(check::certificates(config).into_iter().map(|check| (Program::MeshProxy, check)));
    }
    let mut findings: Vec<Finding> = checks
        .iter()
        .filter(|(_, check)| matches!(check.outcome, check::Outcome::Warning | check::Outcome::Failed))
        .map(|(program, check)| {
            mended(
                config,
                *program,
                check,
                Finding::new(Step::Certificates, check.outcome.into(), &*check.text),
            )
        })
        .collect();
    // What failed first is the cause of the rest.
    findings.sort_by_key(|finding| finding.outcome != Outcome::Fail);
    if findings.is_empty() {
        let days = certificate::read_leaf(&config.mesh.tls.cert_path)
            .map_or(0, |(_, leaf)| leaf.days_left(UnixTime::now()));
        let key = match key {
            true => "its key fits",
            false => "its key was not checked, which needs mesh-proxy's user or root (sudo)",
        };
        let ca = config.mesh.tls.ca_path.display();
        findings.push(Finding::ok(
            Step::Certificates,
            format!(
                "the certificate of {} is trusted by {ca}, it expires in {days} days; {key}",
                config.mesh.node_name
            ),
        ));
    }
    findings
}

/// With the command that fixes what a check found.
fn mended(config: &Config, program: Program, check: &Check, finding: Finding) -> Finding {
    let (node, tls) = (&config.mesh.node_name, &config.mesh.tls);
    let issue = match tls.cert_path.exists() {
        true => mend::certificate(config, node),
        false => mend::first_certificate(config, node),
    };
    match check.about {
        About::Configuration | About::Backend => finding,
        About::Certificate => finding.run_on(CA_HOST, issue),
        About::Key if check.outcome == check::Outcome::Warning => {
            finding.run(format!("sudo chmod 600 {}", tls.key_path.display()))
        }
        About::Key
            if tls.key_path.exists() && fs::File::open(&tls.key_path).is_ok_and(|_| is_denied(check)) =>
        {
            finding.run(format!("sudo chown {} {}", config.registryd.sidecar_user, tls.key_path.display()))
        }
        About::Key => finding.run_on(CA_HOST, issue),
        About::Trust => finding.run_on(CA_HOST, "sudo meshctl ca verify"),
        About::Revocation => finding.run_on(CA_HOST, "sudo meshctl ca refresh-lists"),
        About::Folder => finding.run(match program {
            Program::MeshProxy => {
                format!("sudo install -d -o mesh-proxy -g mesh -m 0750 {}", config.proxy.state_dir.display())
            }
            Program::Registryd => {
                format!("sudo install -d -g mesh -m 2775 {}", config.mesh.storage_dir.display())
            }
        }),
    }
}

/// Whether a daemon's user may not read what this user reads.
fn is_denied(check: &Check) -> bool {
    check.text.contains(&std::io::Error::from_raw_os_error(libc::EACCES).to_string())
}

/// What a daemon's own `check` finds, as the user that it runs as; `None`: this user cannot stand in for it, or there is no
/// such program here. The key is read by mesh-proxy, never by meshctl.
async fn checked_by(program: Program, config: &Config) -> Option<Vec<Check>> {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root && fs::File::open(&config.mesh.tls.key_path).is_err() {
        return None;
    }
    let (name, user) = match program {
        Program::MeshProxy => ("mesh-proxy", sidecar_user(config)),
        Program::Registryd => ("registryd", registryd_user(config)),
    };
    // What root can read says nothing.
    if is_root && user.is_none() {
        return None;
    }
    let path = std::env::current_exe().ok()?.with_file_name(name);
    let mut command = tokio::process::Command::new(path);
    command.args(["check", "--json", "--config"]).arg(config.source.as_deref()?);
    command.env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    if let Some((user, group)) = user.filter(|_| is_root) {
        command.uid(user.as_raw()).gid(group.as_raw());
    }
    let output = tokio::time::timeout(CHECK_LIMIT, command.output()).await.ok()?.ok()?;
    json::read_bytes(&output.stdout).ok()
}

fn sidecar_user(config: &Config) -> Option<(Uid, Gid)> {
    let name = &config.registryd.sidecar_user;
    let user = match name.parse::<u32>() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    };
    user.ok().flatten().map(|user| (user.uid, user.gid))
}

/// Who made the socket, else the user that the packages make.
fn registryd_user(config: &Config) -> Option<(Uid, Gid)> {
    let owner = config.registryd.socket.metadata().ok().map(|socket| Uid::from_raw(socket.uid()));
    let user = match owner {
        Some(owner) => User::from_uid(owner),
        None => User::from_name("registryd"),
    };
    user.ok().flatten().map(|user| (user.uid, user.gid))
}

async fn registryd_status(registryd: &Daemon) -> Result<DaemonStatus, Box<Finding>> {
    let step = Step::Registryd;
    registryd.read(STATUS).await.map_err(|error| {
        let finding = match &error {
            ClientError::Unreachable { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Finding::new(step, Outcome::Unknown, format!("this user has no access to {registryd}"))
                    .because("only root and the socket's group may")
                    .run("sudo meshctl doctor")
            }
            ClientError::Unreachable { source, .. } => {
                Finding::fail(step, format!("{registryd} is not running"))
                    .because(source.to_string())
                    .run("sudo systemctl start registryd")
            }
            ClientError::Timeout { .. } => Finding::fail(step, error.to_string())
                .because("it hangs, or its storage does")
                .run("sudo systemctl restart registryd"),
            _ => Finding::fail(step, error.to_string()).run("sudo systemctl restart registryd"),
        };
        Box::new(finding)
    })
}

fn registryd_findings(config: &Config, status: &DaemonStatus) -> Vec<Finding> {
    let step = Step::Registryd;
    let (node, configured) = (&status.node, &config.mesh.node_name);
    if node != configured {
        let finding = Finding::fail(
            step,
            format!("registryd speaks for node {node}, the configuration for {configured}"),
        )
        .because("it was started with another configuration, or before this one was changed")
        .run("sudo systemctl restart registryd");
        return vec![finding];
    }
    let mut findings = Vec::new();
    if status.version != env!("CARGO_PKG_VERSION") {
        let ours = env!("CARGO_PKG_VERSION");
        findings.push(
            Finding::warn(step, format!("registryd {} is running, meshctl is {ours}", status.version))
                .because("one was installed and the other not restarted")
                .run("sudo systemctl restart registryd"),
        );
    }
    let problems = status.problems.iter().take(MOST_PROBLEMS);
    findings.extend(problems.map(|problem| {
        Finding::warn(step, &**problem).run("sudo meshctl status && sudo journalctl -u registryd -n 50")
    }));
    if findings.is_empty() {
        let age = status.last_heartbeat_age_ms;
        let age =
            age.map_or_else(|| "no heartbeat yet".into(), |age| format!("heartbeat {} ago", duration(age)));
        let (place, nodes) = (&status.registry_path, status.nodes);
        findings.push(Finding::ok(
            step,
            format!("{node} is {}, {age}; {nodes} nodes in {place}", status.status.as_str()),
        ));
    }
    findings
}

async fn seen_certificates(sidecar: &Daemon) -> Result<SeenCertificates, ClientError> {
    let answer = sidecar.send(Method::GET, CERTIFICATES, HeaderMap::new(), Bytes::new()).await?;
    let answer = sidecar.accepted(CERTIFICATES, answer)?;
    json::read_bytes(&answer.body)
        .map_err(|error| sidecar.unexpected(CERTIFICATES, format!("other JSON ({error})")))
}

async fn sidecar_findings(config: &Config, status: &DaemonStatus) -> (Vec<Finding>, Daemon) {
    let step = Step::Sidecar;
    let reported = status.sidecar.as_ref();
    let outbound =
        reported.map_or_else(|| config.proxy.outbound.listen.socket_addr(), |sidecar| sidecar.outbound);
    let sidecar = Daemon::Sidecar(outbound);
    if let Err(error) = seen_certificates(&sidecar).await {
        let finding = match &error {
            ClientError::Unreachable { source, .. } => {
                Finding::fail(step, format!("{sidecar} is not running"))
                    .because(format!("{source}; sudo journalctl -u mesh-proxy says why it ended, if it did"))
                    .run("sudo systemctl start mesh-proxy")
            }
            _ => Finding::fail(step, error.to_string()).run("sudo systemctl restart mesh-proxy"),
        };
        return (vec![finding], sidecar);
    }
    let Some(report) = reported else {
        let finding = Finding::warn(step, format!("{sidecar} is running but does not report to registryd"))
            .because("both need the same configuration file, and registryd.sidecar_user the user that mesh-proxy runs as")
            .run("sudo systemctl restart mesh-proxy registryd");
        return (vec![finding], sidecar);
    };
    // registryd's own come first, and were told before.
    let problems = status::problems(status, UnixTime::now()).into_iter().skip(status.problems.len());
    let mut findings: Vec<Finding> = problems
        .take(MOST_PROBLEMS)
        .map(|problem| {
            Finding::warn(step, problem).run("sudo meshctl status && sudo journalctl -u mesh-proxy -n 50")
        })
        .collect();
    if report.draining {
        findings.push(
            Finding::warn(step, "it was told to stop, and finishes its requests")
                .run("sudo systemctl start mesh-proxy"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            step,
            format!("peers connect to {}, programs of this host to {outbound}", report.inbound),
        ));
    }
    (findings, sidecar)
}
