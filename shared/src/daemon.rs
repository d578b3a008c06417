//! The command line of both daemons: `[run|check] [--config FILE] [--log-format text|json]`, and the exit codes.
//!
//! 0: well; 1: something cannot work, such as a certificate; [`config::EXIT_CODE`]: the configuration cannot work.

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
    Check,
}

/// Does what the process's arguments ask of the daemon `name`: `check` and its report, or `run`, confined to what `needs`
/// says, with a log that begins with the configuration's warnings.
pub fn main(
    name: &'static str,
    about: &'static str,
    check: fn(&Config) -> Vec<Check>,
    needs: fn(&Config) -> Confinement,
    run: fn(Config) -> ExitCode,
) -> ExitCode {
    let matches = Arguments::command().name(name).about(about).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            // Nobody may be left to read it; the exit code says it too.
            let _ = writeln!(io::stderr(), "{name}: {error}");
            return ExitCode::from(config::EXIT_CODE);
        }
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check => show(&check(&config)),
        Command::Run => {
            // First of all: what is confined is this thread, with all that it starts.
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
                    tracing::error!(target: "Mesh", "cannot start: {why}; mesh.landlock: false does without");
                    return ExitCode::FAILURE;
                }
            }
            run(config)
        }
    }
}

/// Says what this process is confined to, or what keeps it from being confined at all.
fn confine(config: &Config, needs: fn(&Config) -> Confinement) -> Result<String, String> {
    if !config.mesh.landlock {
        return Ok("not confined by Landlock (mesh.landlock)".into());
    }
    let confined = needs(config).apply();
    confined
        .map(|confined| confined.to_string())
        .map_err(|error| format!("cannot be confined by Landlock: {error}"))
}

fn show(checks: &[Check]) -> ExitCode {
    let mut output = io::stdout().lock();
    // A reader such as `head` may have what it wanted; the exit code stays the same.
    let _ = checks.iter().try_for_each(|check| writeln!(output, "{check}"));
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
        Arguments::command().debug_assert();
    }
}
