//! `meshctl csr`: a key that never leaves its host, and the request for a certificate of it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use mesh_ca::{KeyType, NewRequest};
use mesh_shared::atomic_file::Draft;
use mesh_shared::identity::Identity;
use serde_json::json;

use crate::output::{print, print_json};
use crate::{Failure, identity};

/// Arguments of `meshctl csr`.
#[derive(Debug, Args)]
pub struct CsrArgs {
    /// A node (ct112), agent (opus@ct112) or device (device:phone-1)
    name: String,
    /// The folder for the key and the request
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Kind of the key
    #[arg(long, value_enum, default_value_t)]
    key_type: KeyType,
    /// Print JSON for programs instead of text for people
    #[arg(long)]
    json: bool,
}

/// Writes `<name>.key` (0600) and `<name>.csr`; nothing is overwritten.
///
/// # Errors
/// A name of nobody in the mesh, files that exist already, a folder that cannot be written.
pub fn run(args: CsrArgs) -> Result<ExitCode, Failure> {
    let identity = identity(&args.name)?;
    let file = |extension: &str| args.out.join(format!("{identity}.{extension}"));
    let (key, request) = (file("key"), file("csr"));
    for path in [&key, &request] {
        if path.exists() {
            return Err(Failure::Usage(format!(
                "{} exists already, and nothing is overwritten; choose another --out",
                path.display()
            )));
        }
    }
    let made = NewRequest::make(&identity, args.key_type)?;
    write_new(&key, &made.key_pem, 0o600)?;
    write_new(&request, &made.request_pem, 0o644)?;
    if args.json {
        print_json(&json!({ "name": identity.to_string(), "key": key, "request": request }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = match identity {
        Identity::Node(_) => " [its address]",
        _ => "",
    };
    print(&format!(
        "made a key of {identity} and the request for its certificate\n  {} (mode 0600; it stays here)\n  {}\nnext:\n  \
         1. carry the request to the CA's host, and there: meshctl ca sign {identity}.csr{names}\n  \
         2. bring back the certificate that it names, and ca-chain.pem\n",
        key.display(),
        request.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn write_new(path: &Path, content: &str, mode: u32) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let draft = Draft::write(path, &format!("meshctl-{}", std::process::id()), content.as_bytes())?;
        draft.set_mode(mode)?;
        draft.create()
    };
    write().map_err(|error| Failure::Said(format!("cannot write {}: {error}", path.display())))
}
