//! `meshctl invite`: one command for a host that is to join, printed on the CA's host.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args};
use mesh_ca::{Ca, DEFAULT_DIR, ENROLMENT_NAME, sha256};
use mesh_enrolment::{Address, Invites, MAX_ADDRESSES, Offer, Token};
use mesh_shared::address::is_host;
use mesh_shared::certificate::read_leaf;
use mesh_shared::enrolment::DEFAULT_PORT;
use mesh_shared::identity::Identity;
use mesh_shared::name::{AgentName, NodeName};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde_json::json;

use crate::output::{day, duration, print, print_json};
use crate::{Failure, node_name, time};

/// Validity of a certificate that renews itself, in days.
const ENROLLED_DAYS: u32 = 7;
/// The longest that an invitation lasts.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Arguments of `meshctl invite`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whom").required(true))]
pub struct InviteArgs {
    /// The node that is to join, as in ct112
    #[arg(value_parser = node_name, group = "whom")]
    node: Option<NodeName>,
    /// An agent that presents a certificate of its own, as in opus@ct112
    #[arg(long, value_name = "AGENT@NODE", group = "whom")]
    agent: Option<String>,
    /// A device that is not a node, as in phone-1
    #[arg(long, value_name = "NAME", group = "whom")]
    device: Option<String>,
    /// The agents that the node may host; its certificate will list them
    #[arg(long, value_name = "AGENTS", value_delimiter = ',', requires = "node")]
    agents: Vec<AgentName>,
    /// Another host name or address of the node, such as its mesh IP; can be given several times
    #[arg(long, value_name = "NAME", requires = "node")]
    san: Vec<String>,
    /// How long the invitation lasts, as in 90s, 15m, 2h or 1d
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = |text: &str| time(text, LONGEST))]
    ttl: Duration,
    /// Validity of the certificate in days; mesh-proxy renews it at half of that
    #[arg(long, default_value_t = ENROLLED_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The address of the CA's process, with or without :port; can be given several times [default: those that `meshctl ca
    /// serve` recorded when it started]
    #[arg(long, value_name = "HOST")]
    address: Vec<String>,
    /// The CA's folder
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Print JSON for programs instead of text for people
    #[arg(long)]
    json: bool,
}

/// Makes an invitation and prints the command that uses it, alone on stdout. The CA's process need not run.
///
/// # Errors
/// There is no CA, its folder cannot be written, or the order makes no sense.
pub fn run(args: InviteArgs) -> Result<ExitCode, Failure> {
    let identity = identity(&args)?;
    for name in &args.san {
        check_name(name, &identity)?;
    }
    become_owner(&args.dir)?;
    let (ca, invites) = (Ca::at(&args.dir), Invites::of_ca(&args.dir));
    let root = sha256(&ca.root_certificate()?);
    let addresses = match args.address.as_slice() {
        [] => invites.addresses()?,
        given => {
            let parsed: Result<Vec<_>, _> =
                given.iter().map(|text| Address::parse(text, DEFAULT_PORT)).collect();
            parsed.map_err(|error| Failure::Usage(error.to_string()))?
        }
    };
    if !(1..=MAX_ADDRESSES).contains(&addresses.len()) {
        return Err(Failure::Usage(match addresses.len() {
            0 => "the address of the CA's process is not known, since it has never run on this folder: start it (systemctl \
                  enable --now mesh-ca), or name its host with --address"
                .into(),
            _ => format!("at most {MAX_ADDRESSES} addresses fit into a token"),
        }));
    }
    let offer = Offer {
        identity: identity.clone(),
        alternative_names: args.san.clone(),
        agents: args.agents.clone(),
        days: args.days,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (secret, id) = invites.create(&offer, args.ttl, now)?;
    let token = Token { root, secret, identity: identity.clone(), addresses };
    let command = match identity {
        Identity::Node(_) => format!("sudo meshctl join {}", *token.to_text()),
        Identity::Agent(..) | Identity::Device(_) => format!("meshctl join {} --out .", *token.to_text()),
    };
    if args.json {
        print_json(&json!({
            "command": command, "token": *token.to_text(), "invitation": id, "name": identity.to_string(),
            "endsAt": now + args.ttl.as_secs(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    // On stderr, so that stdout can be piped to the host that joins.
    let lasts = duration(u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX));
    eprintln!(
        "run this on the host that is to be {identity}, within {lasts}; it works once (invitation {id}):"
    );
    if let Ok((_, leaf)) = read_leaf(&ca.issued_paths(&identity.to_string()).0) {
        eprintln!(
            "{identity} has a certificate until {}, which continues to work alongside the new one; `meshctl ca revoke \
             {identity}` first if it is not to",
            day(leaf.not_after)
        );
    }
    print(&format!("{command}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn identity(args: &InviteArgs) -> Result<Identity, Failure> {
    let parsed = |text: String| text.parse::<Identity>().map_err(|error| Failure::Usage(format!("{error}")));
    match (&args.node, &args.agent, &args.device) {
        (Some(node), ..) => Ok(Identity::Node(node.clone())),
        (_, Some(agent), _) => match parsed(agent.clone())? {
            identity @ Identity::Agent(..) => Ok(identity),
            _ => Err(Failure::Usage(format!(
                "{agent:?} is not an agent on a node; expected <agent>@<node>, as in opus@ct112"
            ))),
        },
        (_, _, device) => {
            let device = device.as_deref().unwrap_or_default();
            parsed(format!("device:{}", device.trim_start_matches("device:")))
        }
    }
}

/// Says now what the CA would say when the host joins.
fn check_name(name: &str, identity: &Identity) -> Result<(), Failure> {
    let refused = |why: String| Err(Failure::Usage(format!("--san {name}: {why}")));
    match NodeName::from_mesh_host(name) {
        _ if !is_host(name) => refused("is neither a host name nor an address".into()),
        _ if name.trim_end_matches('.').eq_ignore_ascii_case(ENROLMENT_NAME) => {
            refused("is the name of the CA's own process".into())
        }
        Some(other) if Some(&other) != identity.node() => refused(format!("is the name of the node {other}")),
        _ => Ok(()),
    }
}

/// Run by root, this continues as the user that owns the CA's folder: what it writes must be that user's, and on NFS root
/// may not write at all.
fn become_owner(dir: &Path) -> Result<(), Failure> {
    let Ok(found) = dir.metadata() else { return Ok(()) };
    if !Uid::effective().is_root() || found.uid() == 0 {
        return Ok(());
    }
    let user = Uid::from_raw(found.uid());
    setgroups(&[]).and_then(|()| setgid(Gid::from_raw(found.gid()))).and_then(|()| setuid(user)).map_err(
        |error| Failure::Said(format!("cannot go on as user {user}, who owns {}: {error}", dir.display())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_told_before_anybody_joins() {
        let ct112 = "ct112".parse().unwrap();
        for good in ["10.0.0.12", "fd00::12", "ct112.lan", "ct112.mesh"] {
            assert!(check_name(good, &ct112).is_ok(), "{good}");
        }
        for bad in ["ct111.mesh", "enrolment.ca.mesh", "Enrolment.CA.mesh.", "a b", "*.mesh"] {
            assert!(check_name(bad, &ct112).is_err(), "{bad} was accepted");
        }
    }
}
