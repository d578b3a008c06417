//! What `meshctl doctor` found: a line for each step, for people, programs and monitors.

use mesh_shared::check;
use serde::Serialize;

use crate::output::{Colour, one_line, paint};

/// What is looked at, in the order of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The configuration file.
    Configuration,
    /// This node's certificate, key, trust bundle and revocation lists.
    Certificates,
    /// The registry daemon of this host.
    Registryd,
    /// The sidecar of this host.
    Sidecar,
    /// What the registry says.
    Registry,
    /// How far clocks are apart.
    Clock,
    /// Which nodes may host an agent.
    Hosting,
    /// Which node gets an agent's tasks.
    Choice,
    /// What a node's name resolves to.
    Name,
    /// Whether its port accepts connections.
    Tcp,
    /// Whether TLS is spoken there, and both sides trust each other.
    Tls,
    /// Whom the certificate names.
    Identity,
    /// Who may ask for what.
    Policy,
    /// The far end's own answer.
    Answer,
    /// Names that two hosts have.
    Duplicates,
    /// Whether each node can be reached.
    Reach,
    /// The programs' versions.
    Versions,
    /// Heartbeats and the silence after which a node counts as offline.
    Thresholds,
    /// When certificates end.
    Expiry,
    /// When revocation lists end.
    Revocation,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Certificates => "certificates",
            Self::Registryd => "registryd",
            Self::Sidecar => "mesh-proxy",
            Self::Registry => "registry",
            Self::Clock => "clock",
            Self::Hosting => "hosting",
            Self::Choice => "choice",
            Self::Name => "name",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Identity => "CN and SAN",
            Self::Policy => "policy",
            Self::Answer => "answer",
            Self::Duplicates => "duplicates",
            Self::Reach => "reach",
            Self::Versions => "versions",
            Self::Thresholds => "thresholds",
            Self::Expiry => "expiry",
            Self::Revocation => "revocation",
        }
    }
}

/// How a step went; the worst comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Not looked at, since an earlier step failed.
    Skipped,
    /// As it should be.
    Ok,
    /// It could not be looked at from here.
    Unknown,
    /// It works, but not for long or not as meant.
    Warn,
    /// It cannot work.
    Fail,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Skipped => "skip",
            Self::Ok => "OK",
            Self::Unknown => "????",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }

    fn colour(self) -> Colour {
        match self {
            Self::Skipped => Colour::Faint,
            Self::Ok => Colour::Green,
            Self::Unknown | Self::Warn => Colour::Yellow,
            Self::Fail => Colour::Red,
        }
    }

    /// As plugins of Nagios and its like end: 0 well, 1 warning, 2 broken, 3 could not look.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Skipped | Self::Ok => 0,
            Self::Warn => 1,
            Self::Fail => 2,
            Self::Unknown => super::COULD_NOT_LOOK,
        }
    }
}

impl From<check::Outcome> for Outcome {
    fn from(outcome: check::Outcome) -> Self {
        match outcome {
            check::Outcome::Ok => Self::Ok,
            check::Outcome::Warning => Self::Warn,
            check::Outcome::Failed => Self::Fail,
            check::Outcome::Skipped => Self::Skipped,
        }
    }
}

/// What was found at one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The step.
    pub step: Step,
    /// The node that it is about, where it is about one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How it went.
    pub outcome: Outcome,
    /// What was found.
    pub finding: String,
    /// Why it is so, as far as it can be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The command that fixes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Where the command belongs; this host if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// The stable code of the sidecar's error, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl Finding {
    /// A finding without more than itself.
    pub fn new(step: Step, outcome: Outcome, finding: impl Into<String>) -> Self {
        let finding = finding.into();
        Self { step, node: None, outcome, finding, cause: None, command: None, on: None, code: None }
    }

    /// All is well.
    pub fn ok(step: Step, finding: impl Into<String>) -> Self {
        Self::new(step, Outcome::Ok, finding)
    }

    /// It works, but.
    pub fn warn(step: Step, finding: impl Into<String>) -> Self {
        Self::new(step, Outcome::Warn, finding)
    }

    /// It does not work.
    pub fn fail(step: Step, finding: impl Into<String>) -> Self {
        Self::new(step, Outcome::Fail, finding)
    }

    /// Says why.
    pub fn because(self, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// Says what fixes it on this host.
    pub fn run(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }

    /// Says what fixes it elsewhere.
    pub fn run_on(self, on: impl Into<String>, command: impl Into<String>) -> Self {
        Self { on: Some(on.into()), ..self.run(command) }
    }

    /// Names the sidecar's error.
    pub fn coded(self, code: Option<&str>) -> Self {
        Self { code: code.map(str::to_owned), ..self }
    }
}

/// What was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "lowercase")]
pub enum Subject {
    /// The mesh as a whole.
    Mesh,
    /// A node.
    Node(String),
    /// An agent, wherever it lives.
    Agent(String),
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Adds a finding; returns whether the way continues behind it.
    pub fn add(&mut self, finding: Finding) -> bool {
        let goes_on = !matches!(finding.outcome, Outcome::Fail | Outcome::Unknown);
        self.findings.push(finding);
        goes_on
    }

    /// Adds several; returns whether the way continues behind all of them.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) -> bool {
        let mut goes_on = true;
        for finding in findings {
            goes_on &= self.add(finding);
        }
        goes_on
    }

    /// Reports these steps as not checked.
    pub fn skip(&mut self, steps: &[Step]) {
        let failed = self.findings.iter().rfind(|each| each.outcome >= Outcome::Unknown);
        let failed = failed.map_or("an earlier step", |each| each.step.word());
        let skipped = steps
            .iter()
            .map(|step| Finding::new(*step, Outcome::Skipped, format!("not checked, since {failed} failed")));
        self.findings.extend(skipped);
    }

    /// The findings in their order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The worst that was found.
    pub fn outcome(&self) -> Outcome {
        self.findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Unknown)
    }

    /// The lines for people; with `quiet` only those that say what is wrong, which may be none.
    pub fn text(&self, quiet: bool) -> String {
        let wrong = |finding: &&Finding| finding.outcome >= Outcome::Unknown;
        let mut text = String::new();
        for finding in self.findings.iter().filter(|each| !quiet || wrong(each)) {
            text.push_str(&finding.lines());
        }
        if !quiet {
            let count = |outcome| self.findings.iter().filter(|each| each.outcome == outcome).count();
            let (warnings, failures) = (count(Outcome::Warn), count(Outcome::Fail));
            let word = paint(self.outcome().colour(), self.outcome().word());
            let all = self.findings.len();
            text.push_str(&format!("{word}: {all} checks, {failures} failed, {warnings} with a warning\n"));
        }
        text
    }
}

impl Finding {
    /// One line with finding and cause, and below it the command, which is there to be copied.
    fn lines(&self) -> String {
        // Padded before it is painted: control sequences have no width.
        let word = paint(self.outcome.colour(), &format!("{:<4}", self.outcome.word()));
        let node = self.node.as_ref().map(|node| format!("{node}: ")).unwrap_or_default();
        let cause = self.cause.as_ref().map(|cause| format!("; {cause}")).unwrap_or_default();
        let said = one_line(&format!("{node}{}{cause}", self.finding));
        let mut lines = format!("{word}  {:<13}  {said}\n", self.step.word());
        if let Some(command) = &self.command {
            let on = self.on.as_ref().map_or_else(|| "run".into(), |on| format!("on {on}"));
            lines.push_str(&format!("{:21}{}: {}\n", "", one_line(&on), one_line(command)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts_and_what_is_behind_a_failure_is_skipped() {
        let mut report = Report::default();
        assert_eq!(report.outcome(), Outcome::Unknown);
        assert!(report.add(Finding::ok(Step::Configuration, "fine")));
        assert_eq!((report.outcome().exit_code(), report.text(true).as_str()), (0, ""));
        assert!(report.add(Finding::warn(Step::Certificates, "soon")));
        assert_eq!(report.outcome().exit_code(), 1);
        assert!(!report.add(Finding::new(Step::Registryd, Outcome::Unknown, "not allowed")));
        assert_eq!(report.outcome().exit_code(), 1);
        let failed = Finding::fail(Step::Tcp, "closed")
            .because("nobody\u{1b}[2J\nlistens")
            .run_on("ct111", "start it");
        assert!(!report.add(failed));
        report.skip(&[Step::Tls]);
        assert_eq!(report.outcome().exit_code(), 2);
        let text = report.text(true);
        assert!(text.contains("FAIL  TCP            closed; nobody [2J listens\n"), "{text}");
        assert!(
            text.contains("\n                     on ct111: start it\n") && !text.contains("skip"),
            "{text}"
        );
        let text = report.text(false);
        assert!(text.contains("skip  TLS            not checked, since TCP failed\n"), "{text}");
        assert!(text.ends_with("FAIL: 5 checks, 1 failed, 1 with a warning\n"), "{text}");
    }
}
