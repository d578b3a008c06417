//! `meshctl hosts`: the mesh's names for programs that know neither registryd nor DNS for `.mesh`.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use mesh_shared::atomic_file::Draft;
use mesh_shared::hosts_file;
use mesh_shared::local_api::{NODES, NodeView};
use serde_json::json;

use crate::output::{print, print_json};
use crate::{Failure, Global};

/// Arguments of `meshctl hosts`.
#[derive(Debug, Args)]
pub struct HostsArgs {
    /// Write the block to this file, in place of an older one; the file is created if it does not exist
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "/etc/hosts")]
    write: Option<PathBuf>,
}

/// Prints the block, or keeps it up to date in a file.
///
/// # Errors
/// registryd cannot be reached, the file's markers are damaged, or it cannot be read or written. It stays whole.
pub async fn run(args: HostsArgs, global: &Global) -> Result<ExitCode, Failure> {
    let nodes: Vec<NodeView> = global.registryd()?.read(NODES).await?;
    let hosts = hosts_file::hosts(&nodes);
    let block = hosts_file::block(&hosts);
    let Some(path) = args.write else {
        match global.json {
            true => print_json(&hosts)?,
            false => print(&block)?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let fail = |error: &dyn std::fmt::Display| Failure::Said(format!("{}: {error}", path.display()));
    let old = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        old => Some(old.map_err(|error| fail(&error))?),
    };
    let new =
        hosts_file::replace(old.as_deref().unwrap_or_default(), &block).map_err(|error| fail(&error))?;
    let what = match old {
        None => {
            create(&path, &new).map_err(|error| fail(&error))?;
            "created"
        }
        Some(old) if old != new => {
            replace(&path, &new).map_err(|error| fail(&error))?;
            "updated"
        }
        Some(_) => "up to date",
    };
    match global.json {
        true => print_json(&json!({ "file": path, "outcome": what }))?,
        false => print(&format!("{} is {what}\n", path.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A new file that everyone may read, as every program does with a hosts file.
fn create(path: &Path, content: &str) -> io::Result<()> {
    let draft = Draft::write(path, &writer(), content.as_bytes())?;
    draft.set_mode(0o644)?;
    draft.create()
}

fn writer() -> String {
    format!("meshctl-{}", std::process::id())
}

/// Readers see the old file or the new one. Links are followed; mode and contents are on disk before the name is.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    match replace_whole(&path, content) {
        // A container's /etc/hosts is a mount of its own, which only takes new content.
        Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::ReadOnlyFilesystem) => {
            write_in_place(&path, content)
        }
        outcome => outcome,
    }
}

fn replace_whole(path: &Path, content: &str) -> io::Result<()> {
    let draft = Draft::write(path, &writer(), content.as_bytes())?;
    draft.set_mode(path.metadata()?.permissions().mode() & 0o7777)?;
    draft.replace()
}

/// The file is at no moment empty, though a reader in between may see both versions mixed.
fn write_in_place(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(content.as_bytes())?;
    file.set_len(content.len() as u64)?;
    file.sync_all()
}
