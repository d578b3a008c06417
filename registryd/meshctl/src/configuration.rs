//! `meshctl config`: what the configuration may hold, as this build understands it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use mesh_shared::config;

use crate::Failure;
use crate::output::print;

/// Arguments of `meshctl config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum What {
    /// Print every key with its default and its meaning, as Markdown
    Reference,
    /// Print the JSON Schema (draft 7), for editors and checkers
    Schema,
}

/// Prints what was asked for.
///
/// # Errors
/// It cannot be written.
pub fn run(args: &ConfigArgs) -> Result<ExitCode, Failure> {
    match args.what {
        What::Reference => print(&config::reference())?,
        // Object keys and texts are always JSON.
        What::Schema => print(&format!("{:#}\n", config::schema()))?,
    }
    Ok(ExitCode::SUCCESS)
}
