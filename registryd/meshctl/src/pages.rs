//! `meshctl completions` and `meshctl man`: what shells and `man` know of this command line, made from it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man;
use mesh_shared::daemon;

use crate::output::print;
use crate::{Failure, command_line};

/// Arguments of `meshctl completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `meshctl man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder for the pages, as in /usr/local/share/man; man1 and man8 are created there if they are missing
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Prints the completions for a shell.
///
/// # Errors
/// They cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut command = command_line();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for `meshctl`, one for each of its commands, and one for each daemon.
///
/// # Errors
/// They cannot be written.
pub fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    let (commands, daemons) = (args.folder.join("man1"), args.folder.join("man8"));
    fs::create_dir_all(&commands)?;
    fs::create_dir_all(&daemons)?;
    clap_mangen::generate_to(command_line(), &commands)?;
    for manual in [&daemon::MESH_PROXY, &daemon::REGISTRYD] {
        let page = Man::new(daemon::command(manual)).section("8").manual("System administration");
        let mut text = Vec::new();
        // All but the subcommands, which have no pages of their own.
        page.render_title(&mut text)?;
        page.render_name_section(&mut text)?;
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        page.render_extra_section(&mut text)?;
        fs::write(daemons.join(format!("{}.8", manual.name)), text)?;
    }
    Ok(ExitCode::SUCCESS)
}
