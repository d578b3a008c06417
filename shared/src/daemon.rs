//! The command line of both daemons: `[run|check [--json]] [--config FILE] [--log-format text|json]`, and the exit codes.
//!
//! 0: success; 1: something cannot work, such as a certificate; [`config::EXIT_CODE`]: the configuration cannot be used.
//! The man page of a daemon has the same text as its `--help` ([`command`]).

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::check::{Check, Outcome};
use crate::config::{self, Config};
use crate::confinement::Confinement;
use crate::logging;

#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file
    #[arg(long, short, global = true, value_name = "FILE", env = config::PATH_VARIABLE, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The form of log lines
    #[arg(long, global = true, value_name = "FORMAT", env = logging::FORMAT_VARIABLE, default_value = "text")]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run (the default)
    Run,
    /// Check configuration, certificates and folders without starting
    Check {
        /// Print a JSON array of {outcome, about, text} instead of lines
        #[arg(long)]
        json: bool,
    },
}

/// The texts of a daemon's man page and `--help`.
#[derive(Debug, Clone, Copy)]
pub struct Manual {
    /// The program's name.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// More about it.
    pub description: &'static str,
    /// Its signals, files and ports, section by section.
    pub sections: &'static str,
}

/// The sidecar.
pub const MESH_PROXY: Manual = Manual {
    name: "mesh-proxy",
    about: "Sidecar that terminates and originates the mesh's mutual TLS",
    description: "\
mesh-proxy runs on the same host as the agent, and is the only program there that reads the node's private key and talks to \
other hosts. Peers connect over mutual TLS (port 3000); mesh-proxy checks their certificates and the policy, and passes their \
requests to the agent as plain HTTP on loopback. Programs of this host reach other nodes and agents through 127.0.0.1:3001.

registryd tells it which nodes there are. While registryd is down, mesh-proxy continues with what it last knew.",
    sections: "\
Commands:
  run             run (the default)
  check [--json]  check certificates, key, revocation lists and folders without starting

Signals:
  SIGHUP   reload certificates, keys, revocation lists and policy; a file that cannot be used changes nothing
  SIGUSR2  start the program that is now installed, and hand over the listening sockets (meshctl upgrade)
  SIGTERM  take no new requests, finish those in flight (proxy.timeouts.drain_ms), and exit; a second one exits at once

Files:
  /etc/mesh/mesh.yaml       the configuration, shared with registryd
  /var/lib/mesh-proxy       the last known mesh, revocation lists, and the certificate of a node that joined
  /run/mesh/registryd.sock  the socket of registryd

Environment:
  MESH_CONFIG      the configuration file, unless --config is given
  MESH_LOG         the log level: error, warn, info (the default), debug, trace
  MESH_LOG_FORMAT  text or json, unless --log-format is given

Exit status:
  0   it was told to stop; check: no problem was found
  1   it cannot start or continue; check: a certificate, a key or a folder cannot be used
  78  the configuration cannot be used; starting again does not help

See also: meshctl(1), registryd(8)",
};

/// The registry daemon.
pub const REGISTRYD: Manual = Manual {
    name: "registryd",
    about: "Keeps this node in the mesh's registry: heartbeats, mesh.json, discovery, names",
    description: "\
registryd registers its host in the mesh's registry, sends heartbeats, decides which nodes are alive, and reports this to \
mesh-proxy, meshctl and programs of this host. It has no key and no public port; it reaches other hosts through mesh-proxy.

The registry is the file mesh.json in mesh.storage_dir, or an etcd cluster (registryd.store). registryd resolves names below \
.mesh, and serves them over DNS if registryd.dns.listen is set.",
    sections: "\
Commands:
  run             run (the default)
  check [--json]  check certificates and folders without starting

Signals:
  SIGHUP   reload what this node publishes: agents, providers, models, capabilities, metadata and role
  SIGTERM  exit; the node says goodbye only if its mesh-proxy has stopped as well

Files:
  /etc/mesh/mesh.yaml       the configuration, shared with mesh-proxy
  mesh.json                 the registry, in mesh.storage_dir, with its lock mesh.json.lock
  /run/mesh/registryd.sock  the socket for mesh-proxy and meshctl (registryd.socket)

Environment:
  MESH_CONFIG      the configuration file, unless --config is given
  MESH_LOG         the log level: error, warn, info (the default), debug, trace
  MESH_LOG_FORMAT  text or json, unless --log-format is given

Exit status:
  0   it was told to stop; check: no problem was found
  1   it cannot start or continue; check: a certificate or a folder cannot be used
  78  the configuration cannot be used; starting again does not help

See also: meshctl(1), mesh-proxy(8)",
};

/// The command line of a daemon.
pub fn command(manual: &Manual) -> clap::Command {
    Arguments::command()
        .name(manual.name)
        .about(manual.about)
        .long_about(format!("{}\n\n{}", manual.about, manual.description))
        .after_help(manual.sections)
        .max_term_width(120)
}

/// Runs the command that the process's arguments name: `check`, which prints its report, or `run`, confined to what `needs`
/// returns, with a log that begins with the configuration's warnings.
pub fn main(
    manual: &Manual,
    check: fn(&Config) -> Vec<Check>,
    needs: fn(&Config) -> Confinement,
    run: fn(Config) -> ExitCode,
) -> ExitCode {
    let name = manual.name;
    let matches = command(manual).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            // There may be no reader; the exit code reports it as well.
            let _ = writeln!(io::stderr(), "{name}: {error}");
            return ExitCode::from(config::EXIT_CODE);
        }
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check { json } => show(&check(&config), json),
        Command::Run => {
            // Before anything else: only this thread, and those that it starts later, are confined.
            let confined = confine(&config, needs);
            let _log = match logging::init(arguments.log_format) {
                Ok(log) => log,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "{name}: cannot start the log: {error}");
                    return ExitCode::FAILURE;
                }
            };
            for warning in &config.warnings {
                tracing::warn!(target: "Config", "{warning}");
            }
            match confined {
                Ok(what) => tracing::info!(target: "Mesh", "{what}"),
                Err(why) => {
                    tracing::error!(target: "Mesh", "cannot start: {why}; set mesh.landlock: false to start without");
                    return ExitCode::FAILURE;
                }
            }
            run(config)
        }
    }
}

/// Confines this process, and returns a description of what it may still do; `Err`: why it cannot be confined.
fn confine(config: &Config, needs: fn(&Config) -> Confinement) -> Result<String, String> {
    if !config.mesh.landlock {
        return Ok("not confined by Landlock (mesh.landlock)".into());
    }
    let confined = needs(config).apply();
    confined
        .map(|confined| confined.to_string())
        .map_err(|error| format!("cannot be confined by Landlock: {error}"))
}

fn show(checks: &[Check], json: bool) -> ExitCode {
    let mut output = io::stdout().lock();
    // A reader such as `head` may have closed the pipe; the exit code stays the same.
    let _ = match json {
        true => serde_json::to_string(checks)
            .map_err(io::Error::other)
            .and_then(|text| writeln!(output, "{text}")),
        false => checks.iter().try_for_each(|check| writeln!(output, "{check}")),
    };
    match checks.iter().any(|check| check.outcome == Outcome::Failed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        for manual in [&MESH_PROXY, &REGISTRYD] {
            command(manual).debug_assert();
        }
    }
}
