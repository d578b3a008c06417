//! `meshctl join`: this host becomes what its token says, with a key that never leaves it.
//!
//! The steps can be interrupted anywhere and repeated: everything that can be checked first is checked first; the key and the
//! request are kept until their certificate has arrived; the certificate is saved before anything relies on it.

mod config;
mod files;
mod start;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use mesh_ca::{hex, sha256};
use mesh_enrolment::{Token, enrol};
use mesh_shared::certificate::{Leaf, TrustBundle, located};
use mesh_shared::config::keys::DEFAULT_STATE_DIR;
use mesh_shared::config::{DEFAULT_PATH, PATH_VARIABLE};
use mesh_shared::enrolment::{DEFAULT_SOCKET, Enrolled};
use mesh_shared::identity::Identity;
use mesh_shared::material::{Coverage, Material};
use mesh_shared::name::NodeName;
use mesh_shared::revocation;
use rustls::pki_types::UnixTime;
use serde_json::json;

use crate::Failure;
use crate::output::{day, print, print_json};
use config::{Setting, Wanted};
use files::{Owner, Pending, Tls};

/// The user of mesh-proxy, who alone reads the node's key, and the group of both daemons.
const USER: &str = "mesh-proxy";
const GROUP: &str = "mesh";

/// Arguments of `meshctl join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The token that `meshctl invite` printed on the CA's host; - reads it from stdin
    token: String,
    /// The configuration file, which is created if it does not exist
    #[arg(long, value_name = "FILE", env = PATH_VARIABLE, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// mesh-proxy's folder; key and certificate are written to tls/ in it
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// The user that mesh-proxy runs as
    #[arg(long, value_name = "USER", default_value = USER)]
    user: String,
    /// The group of mesh-proxy and registryd
    #[arg(long, value_name = "GROUP", default_value = GROUP)]
    group: String,
    /// A key for the new configuration, as in proxy.backend.address=127.0.0.1:9000; the value may be JSON; can be given
    /// several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// Do not start the daemons, for example if their container is started later
    #[arg(long)]
    no_start: bool,
    /// How long registryd and mesh-proxy may take until this node is registered and reachable, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// For an agent or device: the folder for its certificate and key
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The socket of the CA's process, if it runs on this host
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, hide = true)]
    ca_socket: PathBuf,
    /// Print JSON for programs instead of text for people
    #[arg(long)]
    json: bool,
}

/// Joins, and waits until it works.
///
/// # Errors
/// A token that is not whole, a host that is not prepared, a CA that refuses or is another one, or daemons that do not
/// come to work. The same command can be given again.
pub async fn run(args: JoinArgs) -> Result<ExitCode, Failure> {
    let token: Token = read_token(&args.token)?.parse().map_err(failed)?;
    match (&token.identity, &args.out) {
        (Identity::Node(node), None) => node_joins(&args, &token, node.clone()).await,
        (Identity::Node(node), Some(_)) => Err(Failure::Usage(format!(
            "the token is for the node {node}, whose files go below --state-dir; --out is for agents and devices"
        ))),
        (_, Some(out)) => client_joins(&args, &token, out).await,
        (other, None) => Err(Failure::Usage(format!(
            "the token is for {other}, which is not a node: name a folder for its certificate and key with --out"
        ))),
    }
}

fn read_token(given: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.into());
    }
    let mut text = String::new();
    std::io::stdin().take(16 * 1024).read_to_string(&mut text)?;
    // The whole command may have been piped.
    let word = text.split_whitespace().max_by_key(|word| word.len());
    Ok(word.unwrap_or_default().into())
}

async fn node_joins(args: &JoinArgs, token: &Token, node: NodeName) -> Result<ExitCode, Failure> {
    let owner = Owner::of(&args.user, &args.group)?;
    let tls = Tls::below(&args.state_dir, owner);
    let wanted = Wanted { node: node.clone(), files: tls.paths(), state_dir: args.state_dir.clone() };
    // Before the token is spent.
    let existing = config::existing(&args.config, &wanted)?;
    if existing.is_none() {
        config::check_settings(&args.set, &wanted)?;
    }
    tls.make()?;
    let (enrolled, leaf) = match tls.joined_with(token)? {
        Some(enrolled) => {
            let leaf = checked(token, &enrolled, None)?;
            (enrolled, leaf)
        }
        None => {
            let (enrolled, leaf, pending) = enrolled(token, &tls.pending_folder()).await?;
            tls.take(token, &enrolled, &pending)?;
            (enrolled, leaf)
        }
    };
    tls.forget_pending()?;
    let here = args.ca_socket.exists().then(|| node.clone());
    let mut remarks = match &existing {
        Some(config) => config::remarks(config, &enrolled, here.as_ref()),
        None => {
            config::write(&args.config, &wanted, &enrolled, here.as_ref(), &leaf, &args.set)?;
            Vec::new()
        }
    };
    if here.is_none() && enrolled.ca_node.is_none() {
        remarks.push(format!(
            "the CA's host is not a node yet, so nothing renews this certificate, which ends on {}: let that host join too, then set \
             mesh.ca.node here",
            day(leaf.not_after)
        ));
    }
    let seed = enrolled.seed.as_ref().map(|seed| seed.node.clone()).filter(|seed| *seed != node);
    let works = match args.no_start {
        true => None,
        false => Some(start::start(&args.config, seed.as_ref(), args.timeout).await?),
    };
    if args.json {
        print_json(&json!({
            "node": node, "notAfter": leaf.not_after, "certificate": tls.paths().cert_path, "config": args.config,
            "configKept": existing.is_some(), "remarks": remarks, "started": works.is_some(),
            "nodes": works.as_ref().map(|works| works.nodes), "seed": seed,
            "problems": works.as_ref().map(|works| &works.problems),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "joined the mesh as {node}\n  certificate   {} (until {})\n  configuration {}{}\n",
        tls.paths().cert_path.display(),
        day(leaf.not_after),
        args.config.display(),
        if existing.is_some() { ", which was there and is kept" } else { "" },
    );
    for remark in &remarks {
        text.push_str(&format!("  note          {remark}\n"));
    }
    text.push_str(&match &works {
        Some(works) => works.told(seed.as_ref()),
        None => format!(
            "nothing was started (--no-start): start registryd and mesh-proxy with --config {}\n",
            args.config.display()
        ),
    });
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// An agent or device: certificate, key and chain in a folder of its own.
async fn client_joins(args: &JoinArgs, token: &Token, out: &Path) -> Result<ExitCode, Failure> {
    let name = match &token.identity {
        Identity::Device(device) => device.clone(),
        other => other.to_string(),
    };
    let [certificate, key, chain] =
        [format!("{name}.crt"), format!("{name}.key"), "ca-chain.pem".into()].map(|file| out.join(file));
    if certificate.exists() || key.exists() {
        return Err(Failure::Said(format!(
            "{name}.crt or {name}.key is in {} already, and nothing is overwritten; move them away, or choose another --out",
            out.display()
        )));
    }
    let folder = out.join(".joining");
    let (enrolled, leaf, pending) = enrolled(token, &folder).await?;
    files::write(&chain, enrolled.chain.as_bytes(), 0o644, None)?;
    // The key first: a certificate that is there has one.
    files::write(&key, pending.key.as_bytes(), 0o600, None)?;
    files::write(&certificate, enrolled.certificate.as_bytes(), 0o644, None)?;
    files::remove_folder(&folder)?;
    if args.json {
        print_json(&json!({
            "name": leaf.common_name, "certificate": certificate, "key": key, "chain": chain, "notAfter": leaf.not_after,
        }))?;
    } else {
        print(&format!(
            "{} has a certificate until {}\n  {}\n  {} (mode 0600)\n  {} (what it trusts)\n",
            leaf.common_name,
            day(leaf.not_after),
            certificate.display(),
            key.display(),
            chain.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the key or takes the one of an earlier attempt with this token, and has the CA certify it.
async fn enrolled(token: &Token, folder: &Path) -> Result<(Enrolled, Leaf, Pending), Failure> {
    let pending = Pending::of(token, folder)?;
    let enrolled = enrol(token, &pending.csr).await.map_err(failed)?;
    let leaf = checked(token, &enrolled, Some(&pending))?;
    Ok((enrolled, leaf, pending))
}

/// What the certificate says, once it is sure that it is the one that was asked for and that peers will take it.
fn checked(token: &Token, enrolled: &Enrolled, pending: Option<&Pending>) -> Result<Leaf, Failure> {
    let bad = |what: String| Failure::Said(format!("the CA's answer cannot be used: {what}"));
    let path = Path::new("from the CA");
    let chain = located(&enrolled.certificate).map_err(|mistake| bad(mistake.to_string()))?;
    let first = chain.first().ok_or_else(|| bad("it holds no certificate".into()))?;
    let leaf = Leaf::parse(&first.der).map_err(|error| bad(error.to_string()))?;
    if leaf.identity != token.identity {
        return Err(bad(format!("it names {}, but the token names {}", leaf.identity, token.identity)));
    }
    if pending.is_some_and(|pending| !pending.is_of(&first.der)) {
        return Err(bad("it is for another key".into()));
    }
    let authorities = located(&enrolled.chain).map_err(|mistake| bad(mistake.to_string()))?;
    if !authorities.iter().any(|authority| sha256(&authority.der) == token.root) {
        return Err(bad("its chain lacks the certificate that the token names".into()));
    }
    let crls = match enrolled.crl.as_str() {
        "" => Vec::new(),
        text => revocation::parse(text).map_err(|error| bad(error.to_string()))?,
    };
    let material = Material {
        cert_path: path.into(),
        chain: chain.into_iter().map(|each| each.der).collect(),
        leaf,
        bundle: Arc::new(TrustBundle::of(path, &authorities).map_err(|error| bad(error.to_string()))?),
        coverage: if crls.is_empty() { Coverage::Optional } else { Coverage::Required },
        crls,
    };
    let now = UnixTime::now();
    material
        .accepted_in_its_role(now)
        .map_err(|error| bad(format!("{error} (is this host's clock right?)")))?;
    Ok(material.leaf)
}

/// What tells a token from others where it is not to be known.
fn digest_of(token: &Token) -> String {
    hex(&token.secret.digest())
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Said(error.to_string())
}
