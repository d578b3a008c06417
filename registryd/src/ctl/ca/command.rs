//! `meshctl ca …`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rustls::pki_types::UnixTime;

use super::{Ca, DEFAULT_DIR, DEFAULT_ROOT_DIR, Examined, Issued, KeyType, LEAF_DAYS, Order};
use crate::ctl::Failure;
use crate::ctl::output::{Cell, Colour, Table, day, paint, print, print_json};

/// Arguments of `meshctl ca`.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// The CA's folder; nodes read ca-chain.pem and their own certificate from it
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new CA: a root, an intermediate that signs, and the chain that nodes trust
    Init {
        /// Where the root's key goes; keep it on one host, or take it offline
        #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
        root_dir: PathBuf,
        /// Kind of the CA's keys
        #[arg(long, value_enum, default_value_t)]
        key_type: KeyType,
    },
    /// Issue a node's certificate and key: CN=<NODE>, valid for <NODE>.mesh and the given names
    IssueNode {
        /// The node, as in mesh.node_name
        node: NodeName,
        /// More host names and addresses of the node, such as its mesh IP
        san: Vec<String>,
        #[command(flatten)]
        leaf: LeafArgs,
    },
    /// Issue an agent's client certificate: CN=<AGENT>@<NODE>
    IssueAgent {
        /// Agent and node, as in opus@ct110
        agent: String,
        #[command(flatten)]
        leaf: LeafArgs,
    },
    /// Issue a device's client certificate: CN=device:<NAME>
    IssueDevice {
        /// The device, as in phone-1
        name: String,
        #[command(flatten)]
        leaf: LeafArgs,
    },
    /// Replace an issued certificate and key: the same names, new dates; mesh-proxy reloads on SIGHUP
    Renew {
        /// A node (ct110), agent (opus@ct110) or device (device:phone-1)
        name: String,
        #[command(flatten)]
        leaf: LeafArgs,
    },
    /// Check every certificate the way peers will; exit code 1 if one cannot work
    Verify,
    /// Show every certificate with its names and dates
    List,
}

#[derive(Debug, Args)]
struct LeafArgs {
    /// Validity in days (never longer than the CA's)
    #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Kind of the new key
    #[arg(long, value_enum, default_value_t)]
    key_type: KeyType,
}

/// Does what was asked.
///
/// # Errors
/// See [`super::CaError`].
pub fn run(args: CaArgs, json: bool) -> Result<ExitCode, Failure> {
    let ca = Ca::at(&args.dir);
    let issue = |identity: Identity, names, leaf: LeafArgs| {
        let order = Order { identity, alternative_names: names, days: leaf.days, key_type: leaf.key_type };
        show_issued(&ca.issue(&order)?, json)
    };
    match args.command {
        Command::Init { root_dir, key_type } => {
            ca.init(&root_dir, key_type)?;
            match json {
                true => print_json(&serde_json::json!({
                    "chain": ca.chain_path(), "rootKey": root_dir.join("root.key"),
                }))?,
                false => print(&format!(
                    "made a CA in {}\n  trusted by nodes  {}\n  signs from now on {}\n  root key          {} \
                     (not needed again for {} years; take it offline)\nnext: meshctl ca issue-node <node> <its address>\n",
                    args.dir.display(),
                    ca.chain_path().display(),
                    ca.intermediate_key_path().display(),
                    root_dir.join("root.key").display(),
                    super::INTERMEDIATE_DAYS / 365,
                ))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::IssueNode { node, san, leaf } => issue(Identity::Node(node), san, leaf),
        Command::IssueAgent { agent, leaf } => match identity(&agent)? {
            identity @ Identity::Agent(..) => issue(identity, Vec::new(), leaf),
            _ => Err(Failure::Usage(format!(
                "{agent:?} is no agent on a node; expected <agent>@<node>, as in opus@ct110"
            ))),
        },
        Command::IssueDevice { name, leaf } => {
            issue(identity(&format!("device:{}", name.trim_start_matches("device:")))?, Vec::new(), leaf)
        }
        Command::Renew { name, leaf } => {
            show_issued(&ca.renew(&identity(&name)?, leaf.days, leaf.key_type)?, json)
        }
        Command::Verify => verify(&ca.examine(UnixTime::now())?, json),
        Command::List => list(&ca.examine(UnixTime::now())?, json),
    }
}

fn identity(text: &str) -> Result<Identity, Failure> {
    text.parse().map_err(|error| Failure::Usage(format!("{error}")))
}

fn show_issued(issued: &Issued, json: bool) -> Result<ExitCode, Failure> {
    let leaf = &issued.leaf;
    let names: Vec<_> =
        leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect();
    match json {
        true => print_json(&serde_json::json!({
            "cn": leaf.common_name, "certificate": issued.certificate, "key": issued.key,
            "alternativeNames": names, "notAfter": leaf.not_after,
        }))?,
        false => {
            let names = if names.is_empty() { String::new() } else { format!(" for {}", names.join(", ")) };
            print(&format!(
                "issued CN={}{names}, valid until {}\n  {}\n  {} (mode 0600: give it to the user mesh-proxy runs as)\n",
                leaf.common_name,
                day(leaf.not_after),
                issued.certificate.display(),
                issued.key.display(),
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(all: &[Examined], json: bool) -> Result<ExitCode, Failure> {
    let failed = all.iter().filter(|each| !each.problems.is_empty()).count();
    if json {
        print_json(&all)?;
    } else {
        let mut text = String::new();
        for each in all {
            let (colour, mark) = match (each.problems.is_empty(), each.remarks.is_empty()) {
                (false, _) => (Colour::Red, "FAIL"),
                (true, false) => (Colour::Yellow, "warn"),
                (true, true) => (Colour::Green, "ok  "),
            };
            let cn =
                each.cn.as_deref().map_or_else(|| each.path.display().to_string(), |cn| format!("CN={cn}"));
            let days = each.days_left.map(|days| format!(", {days} days left")).unwrap_or_default();
            text.push_str(&format!("{} {} {cn}{days}\n", paint(colour, mark), each.kind.as_str()));
            for remark in each.problems.iter().chain(&each.remarks) {
                text.push_str(&format!("       {remark}\n"));
            }
        }
        text.push_str(&match failed {
            0 => format!("all {} certificates are good\n", all.len()),
            _ => format!("{failed} of {} certificates cannot work\n", all.len()),
        });
        print(&text)?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list(all: &[Examined], json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["CN", "KIND", "ALTERNATIVE NAMES", "VALID UNTIL", "DAYS", "STATE"]);
    for each in all {
        let state = match each.problems.is_empty() {
            true => Cell::coloured(Colour::Green, "ok"),
            false => Cell::coloured(Colour::Red, "see meshctl ca verify"),
        };
        table.row([
            each.cn.clone().unwrap_or_else(|| each.path.display().to_string()).into(),
            each.kind.as_str().into(),
            each.alternative_names.join(", ").into(),
            each.not_after.map(day).unwrap_or_default().into(),
            each.days_left.map(|days| days.to_string()).unwrap_or_default().into(),
            state,
        ]);
    }
    print(&table.render())?;
    Ok(ExitCode::SUCCESS)
}
