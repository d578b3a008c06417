//! `meshctl`: the operator's command. It queries the two daemons of its host, and makes certificates.
#![allow(rustdoc::invalid_html_tags, reason = "these comments are the command line's help")]

mod ca;
mod card;
mod configuration;
mod csr;
mod dashboard;
mod demo;
mod doctor;
mod drain;
mod examples;
mod hosts;
mod invite;
mod join;
mod live;
mod nodes;
mod output;
mod pages;
mod ping;
mod policy;
mod repeat;
mod sse;
mod status;
mod store;
mod tap;
mod top;
mod upgrade;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mesh_shared::config::keys::DEFAULT_REGISTRYD_SOCKET;
use mesh_shared::config::{self, Config, ConfigError};
use mesh_shared::identity::Identity;
use mesh_shared::name::{NameError, NodeName};

use mesh_client::{ClientError, Daemon};
use repeat::Show;

/// The configuration that the packages install. Until somebody edits it, it does not describe this host.
const EXAMPLE_CONFIG: &str = include_str!("../../../deploy/mesh.yaml");

/// The configuration of this host's node. `None` if this host is not a node: there is no file, or it is still the one that the
/// packages installed.
///
/// # Errors
/// It cannot be used.
fn own_config(path: &Path) -> Result<Option<Config>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) if text == EXAMPLE_CONFIG => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => Config::load(path).map(Some),
    }
}

/// The operator's command for a mesh of agents: makes certificates, shows the mesh, and finds out what is wrong.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100)]
struct Cli {
    /// Do not use colour; there is none either if NO_COLOR is set, TERM is dumb, or the output is not a terminal
    #[arg(long, global = true)]
    no_color: bool,
    #[command(subcommand)]
    command: Command,
}

/// The options of all commands that query this host's daemons.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// The configuration file [default: $MESH_CONFIG, else /etc/mesh/mesh.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// registryd's socket [default: as configured, else /run/mesh/registryd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show whether this node is healthy, or set its status; exit code 1 if something is wrong
    Status(Asking<status::StatusArgs>),
    /// Show the nodes of the mesh
    Nodes(Asking<nodes::NodesArgs>),
    /// Show the agents of the mesh and where they live
    Agents(Asking<Show>),
    /// Ping a node (or all) over mutual TLS; exit code 1 if one does not answer
    Ping(Asking<ping::PingArgs>),
    /// Find out what is wrong: check the path to a node or an agent step by step, or the mesh as a whole
    Doctor(Asking<doctor::DoctorArgs>),
    /// Replace the running mesh-proxy with the installed program, without refusing or losing a request
    Upgrade(Asking<upgrade::UpgradeArgs>),
    /// Show changes in the mesh as they happen
    Watch(Global),
    /// Show what is in flight by peer and agent, with rates and times, updated each second
    Top(Asking<top::TopArgs>),
    /// Show requests as they end: caller, destination, status and time, never their content
    Tap(Asking<tap::TapArgs>),
    /// Announce that this node takes no new tasks, and wait for those in flight; exit code 3 if they take too long
    Drain(Asking<drain::DrainArgs>),
    /// Announce that this node takes tasks again
    Undrain(Global),
    /// Show the mesh live on a web page of this host, for you alone
    Dashboard(Asking<dashboard::DashboardArgs>),
    /// Print the mesh's names as a block for /etc/hosts, or keep it up to date there
    Hosts(Asking<hosts::HostsArgs>),
    /// Move the registry between mesh.json and etcd
    Store(Asking<store::StoreArgs>),
    /// Print the reference or the JSON Schema of the configuration
    Config(configuration::ConfigArgs),
    /// Explain how proxy.policy and proxy.outbound.policy decide a request
    Policy(Asking<policy::PolicyArgs>),
    /// Print the command with which a host joins the mesh; run this on the CA's host
    Invite(invite::InviteArgs),
    /// Join the mesh with the token of an invitation: make the key, get the certificate, configure and start the daemons
    Join(Box<join::JoinArgs>),
    /// Issue, renew, revoke and check the mesh's certificates
    Ca(ca::CaArgs),
    /// Make a key and a certificate signing request, to be signed with `meshctl ca sign`
    ///
    /// The key stays on this host. Neither the request nor the certificate is secret.
    Csr(csr::CsrArgs),
    /// Run a small mesh on this machine, and show what it does
    Demo(demo::DemoArgs),
    /// Print completions of this command line for a shell
    Completions(pages::CompletionsArgs),
    /// Write the man pages of this command, its subcommands and the daemons
    Man(pages::ManArgs),
    /// One of the demo's agents
    #[command(hide = true)]
    DemoAgent(demo::agent::AgentArgs),
}

/// A command's own arguments, and the options for querying a daemon.
#[derive(Debug, clap::Args)]
struct Asking<A: clap::Args> {
    #[command(flatten)]
    args: A,
    #[command(flatten)]
    global: Global,
}

/// A node as people name it: `ct110` or `ct110.mesh`.
fn node_name(text: &str) -> Result<NodeName, NameError> {
    NodeName::from_mesh_host(text).map_or_else(|| text.parse(), Ok)
}

/// A time as people say it: `90s`, `15m`, `2h` or `1d`, at most `longest`.
fn time(text: &str, longest: Duration) -> Result<Duration, String> {
    let days = longest.as_secs() / 86_400;
    let expected = || {
        let s = if days == 1 { "" } else { "s" };
        format!("expected a time of at most {days} day{s}, such as 90s, 15m, 2h or 1d, found {text:?}")
    };
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(expected)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u32 = number.parse().map_err(|_| expected())?;
    let time = Duration::from_secs(u64::from(number) * seconds);
    (Duration::from_secs(1)..=longest).contains(&time).then_some(time).ok_or_else(expected)
}

/// An identity as people name it.
fn identity(text: &str) -> Result<Identity, Failure> {
    text.parse().map_err(|error| Failure::Usage(format!("{error}")))
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum Failure {
    #[error(transparent)]
    Ca(#[from] mesh_ca::CaError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Doctor(String),
    #[error(transparent)]
    Invites(#[from] mesh_enrolment::InvitesError),
    #[error("{0}")]
    Said(String),
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            // The reader (such as `head`) has closed the pipe.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Config(_) => config::EXIT_CODE,
            Self::Usage(_) => 2,
            Self::Doctor(_) => doctor::COULD_NOT_LOOK,
            Self::Ca(_) | Self::Client(_) | Self::Invites(_) | Self::Output(_) | Self::Said(_) => 1,
        }
    }
}

/// The command line: what is parsed, and what `--help`, the man pages and completions tell.
fn command_line() -> clap::Command {
    examples::with_examples(Cli::command())
}

fn main() -> ExitCode {
    let matches = command_line().try_get_matches();
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| {
        // clap exits with 2, which means to a monitor that the mesh is broken.
        let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-'));
        if error.use_stderr() && words.next().is_some_and(|command| command == "doctor") {
            let _ = error.print();
            std::process::exit(doctor::COULD_NOT_LOOK.into());
        }
        error.exit()
    });
    if cli.no_color {
        output::without_colour();
    }
    // One thread, because children that end with their parent end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Failure::Output(error)),
    };
    result.unwrap_or_else(|failure| {
        let code = failure.exit_code();
        if code != 0 {
            let said = failure.to_string();
            // Keeps this program's line breaks, but removes control characters that other hosts may have put into a line.
            let lines: Vec<String> = said.lines().map(output::one_line).collect();
            eprintln!("meshctl: {}", lines.join("\n"));
        }
        ExitCode::from(code)
    })
}

async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Status(Asking { args, global }) => status::run(args, &global).await,
        Command::Nodes(Asking { args, global }) => nodes::run(args, &global).await,
        Command::Agents(Asking { args, global }) => nodes::agents(args, &global).await,
        Command::Ping(Asking { args, global }) => ping::run(args, &global).await,
        Command::Doctor(Asking { args, global }) => doctor::run(args, &global).await,
        Command::Upgrade(Asking { args, global }) => upgrade::run(args, &global).await,
        Command::Watch(global) => watch::run(&global).await,
        Command::Top(Asking { args, global }) => top::run(args, &global).await,
        Command::Tap(Asking { args, global }) => tap::run(args, &global).await,
        Command::Drain(Asking { args, global }) => drain::run(args, &global).await,
        Command::Undrain(global) => drain::undo(&global).await,
        Command::Dashboard(Asking { args, global }) => dashboard::run(args, &global).await,
        Command::Hosts(Asking { args, global }) => hosts::run(args, &global).await,
        Command::Store(Asking { args, global }) => store::run(args, &global).await,
        Command::Config(args) => configuration::run(&args),
        Command::Policy(Asking { args, global }) => policy::run(args, &global),
        Command::Invite(args) => invite::run(args),
        Command::Join(args) => join::run(*args).await,
        Command::Ca(args) => ca::run(args).await,
        Command::Csr(args) => csr::run(args),
        Command::Demo(args) => demo::run(args).await,
        Command::Completions(args) => pages::completions(&args),
        Command::Man(args) => pages::man(&args),
        Command::DemoAgent(args) => demo::agent::run(args).await,
    }
}

impl Global {
    /// The configuration, if there is one: a file that was named must load, the default one need not exist.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn config(&self) -> Result<Option<Config>, ConfigError> {
        let named =
            self.config.clone().or_else(|| std::env::var_os(config::PATH_VARIABLE).map(PathBuf::from));
        match named {
            Some(path) => Config::load(&path).map(Some),
            None => own_config(Path::new(config::DEFAULT_PATH)),
        }
    }

    /// registryd, from `--socket`, the configuration or the default.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn registryd(&self) -> Result<Daemon, ConfigError> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => self
                .config()?
                .map_or_else(|| DEFAULT_REGISTRYD_SOCKET.into(), |config| config.registryd.socket),
        };
        Ok(Daemon::Registryd(socket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_a_limit() {
        let longest = Duration::from_secs(7 * 86_400);
        assert_eq!(time("15m", longest), Ok(Duration::from_secs(900)));
        assert_eq!(time("7d", longest), Ok(longest));
        for bad in ["", "m", "15", "0s", "8d", "-1m", "1.5h", "15 m", "5µ"] {
            assert!(time(bad, longest).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command_line().debug_assert();
    }
}
