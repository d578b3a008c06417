//! `meshctl completions` and `meshctl man`: what shells and `man` know of this command line, made from it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::output::print;
use crate::{Cli, Failure};

/// Arguments of `meshctl completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `meshctl man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go; made if it is missing
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Prints the completions for a shell.
///
/// # Errors
/// They cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for `meshctl` and one for each of its commands.
///
/// # Errors
/// They cannot be written.
pub fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(Cli::command(), &args.folder)?;
    Ok(ExitCode::SUCCESS)
}
