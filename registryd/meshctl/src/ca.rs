//! `meshctl ca …`.

mod report;

use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use mesh_shared::identity::Identity;
use mesh_shared::name::NodeName;
use rustls::pki_types::UnixTime;
use serde_json::json;

use crate::output::{Colour, day, paint, print, print_json};
use crate::{Failure, node_name};
use mesh_ca::{
    Ca, DEFAULT_DIR, DEFAULT_ROOT_DIR, INTERMEDIATE_DAYS, Issued, KeyType, Kind, LEAF_DAYS, NewIntermediate,
    Order, RENEW_WITHIN_DAYS, Revoked, State, Which, ends,
};
use report::{list, verify};

/// Arguments of `meshctl ca`.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// The CA's folder; nodes read ca-chain.pem and their own certificate from it
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
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
        #[arg(value_parser = node_name)]
        node: NodeName,
        /// More host names and addresses of the node, such as its mesh IP
        san: Vec<String>,
        #[command(flatten)]
        leaf: LeafArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Issue an agent's client certificate: CN=<AGENT>@<NODE>
    IssueAgent {
        /// Agent and node, as in opus@ct110
        agent: String,
        #[command(flatten)]
        leaf: LeafArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Issue a device's client certificate: CN=device:<NAME>
    IssueDevice {
        /// The device, as in phone-1
        name: String,
        #[command(flatten)]
        leaf: LeafArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Replace an issued certificate and its key: the same names, new dates
    ///
    /// The node's mesh-proxy takes the new ones within seconds of their coming, which breaks no connection.
    Renew {
        /// A node (ct110), agent (opus@ct110) or device (device:phone-1)
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every certificate that ends soon or has ended, but none that is revoked; for a timer, once a day
        #[arg(long)]
        all: bool,
        /// What counts as soon, with --all
        #[arg(long, value_name = "DAYS", requires = "all", default_value_t = RENEW_WITHIN_DAYS)]
        within: u32,
        /// Validity in days (never longer than the CA's)
        #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Kind of the new key [default: that of the old one]
        #[arg(long, value_enum)]
        key_type: Option<KeyType>,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Make a new intermediate, signed by the root, that signs from now on
    ///
    /// For an intermediate that ends, or whose key is lost. The old one stays in ca-chain.pem until it ends, so
    /// that certificates of both work; its key is kept, to revoke what it has signed. Needs the root's key, so
    /// run it where that lies. Afterwards every host reads ca-chain.pem anew, before certificates are renewed.
    RenewIntermediate {
        /// The folder with root.crt and root.key
        #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
        root_dir: PathBuf,
        /// Kind of the new key [default: that of the old one]
        #[arg(long, value_enum)]
        key_type: Option<KeyType>,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Make peers refuse a certificate before it ends, such as that of a host that was broken into
    ///
    /// Writes intermediate/crl.pem. A host looks at it once proxy.crl_path in its configuration names it, and
    /// from then on whenever it changes. A revoked certificate cannot be made valid again; `meshctl ca renew`
    /// gives its owner a new one.
    Revoke {
        /// A node (ct110), agent (opus@ct110) or device (device:phone-1): all its certificates that have not
        /// ended, those that were renewed since too
        #[arg(required_unless_present_any = ["serial", "file"], conflicts_with_all = ["serial", "file"])]
        name: Option<String>,
        /// Only the one with this serial number
        #[arg(long, value_name = "HEX", conflicts_with = "file")]
        serial: Option<String>,
        /// The certificate in this file, which may lie elsewhere
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Of a node, those of its agents too; without this they are named, and on a terminal you are asked
        #[arg(long, conflicts_with_all = ["serial", "file"])]
        with_agents: bool,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Check every certificate the way peers will; exit code 1 if one cannot work that is not revoked
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

#[derive(Debug, Args)]
struct SigningArgs {
    /// The key that signs, if it was moved off the shared folder [default: <DIR>/intermediate/intermediate.key]
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
}

/// Does what was asked.
///
/// # Errors
/// See [`mesh_ca::CaError`].
pub fn run(args: CaArgs) -> Result<ExitCode, Failure> {
    let (ca, json) = (Ca::at(&args.dir), args.json);
    let issue = |identity: Identity, names, leaf: LeafArgs, signing: SigningArgs| {
        let order = Order { identity, alternative_names: names, days: leaf.days, key_type: leaf.key_type };
        show_issued("issued", &ca.clone().signing_with(signing.signing_key).issue(&order)?, json)
    };
    match args.command {
        Command::Init { root_dir, key_type } => {
            let above = ca.init(&root_dir, key_type)?;
            show_made(&ca, &args.dir, &root_dir, above.as_deref(), json)
        }
        Command::IssueNode { node, san, leaf, signing } => issue(Identity::Node(node), san, leaf, signing),
        Command::IssueAgent { agent, leaf, signing } => match identity(&agent)? {
            identity @ Identity::Agent(..) => issue(identity, Vec::new(), leaf, signing),
            _ => Err(Failure::Usage(format!(
                "{agent:?} is no agent on a node; expected <agent>@<node>, as in opus@ct110"
            ))),
        },
        Command::IssueDevice { name, leaf, signing } => {
            let identity = identity(&format!("device:{}", name.trim_start_matches("device:")))?;
            issue(identity, Vec::new(), leaf, signing)
        }
        Command::Renew { name, within, days, key_type, signing, all: _ } => {
            let ca = ca.signing_with(signing.signing_key);
            match name {
                Some(name) => show_issued("renewed", &ca.renew(&identity(&name)?, days, key_type)?, json),
                None => renew_all(&ca, within, days, key_type, json),
            }
        }
        Command::RenewIntermediate { root_dir, key_type, signing } => {
            let ca = ca.signing_with(signing.signing_key);
            show_intermediate(&ca, &ca.renew_intermediate(&root_dir, key_type)?, json)
        }
        Command::Revoke { name, serial, file, with_agents, signing } => {
            let which = match (name, serial, file) {
                (_, Some(serial), _) => Which::Serial(serial),
                (_, _, Some(file)) => Which::File(file),
                (name, None, None) => Which::Named(identity(&name.unwrap_or_default())?),
            };
            let ca = ca.signing_with(signing.signing_key);
            let mut revoked = ca.revoke(&which)?;
            let mut agents = match &which {
                Which::Named(Identity::Node(node)) => ca.agents_of(node)?,
                _ => Vec::new(),
            };
            if !agents.is_empty() && (with_agents || (!json && also_agents(&agents)?)) {
                for agent in std::mem::take(&mut agents) {
                    revoked.extend(ca.revoke(&Which::Named(agent))?);
                }
            }
            show_revoked(&ca, &revoked, &agents, json)
        }
        Command::Verify => verify(&ca.examine(UnixTime::now())?, json),
        Command::List => list(&ca.examine(UnixTime::now())?, json),
    }
}

fn identity(text: &str) -> Result<Identity, Failure> {
    text.parse().map_err(|error| Failure::Usage(format!("{error}")))
}

fn show_made(
    ca: &Ca,
    dir: &Path,
    root_dir: &Path,
    above: Option<&Path>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let root_key = root_dir.join("root.key");
    if json {
        let created = above.map(Path::to_owned);
        print_json(&json!({ "chain": ca.chain_path(), "rootKey": root_key, "created": created }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let created = above.map_or_else(String::new, |above| {
        let above = above.display();
        let warning =
            "which was not there: if it should be a mount, mount it and start over with another --root-dir";
        paint(Colour::Yellow, &format!("created {above}, {warning}")) + "\n"
    });
    print(&format!(
        "{created}made a CA in {}\n  trusted by nodes  {}\n  signs from now on {}\n  root key          {} \
         (not needed again for {} years; take it offline)\nnext: meshctl ca issue-node <node> <its address>\n",
        dir.display(),
        ca.chain_path().display(),
        ca.signing_key_path().display(),
        root_key.display(),
        INTERMEDIATE_DAYS / 365,
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn show_issued(done: &str, issued: &Issued, json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&issued_json(issued))?;
        return Ok(ExitCode::SUCCESS);
    }
    let leaf = &issued.leaf;
    let names: Vec<_> =
        leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect();
    let names = if names.is_empty() { String::new() } else { format!(" for {}", names.join(", ")) };
    let whose = match &leaf.identity {
        Identity::Node(_) => "give it to the user mesh-proxy runs as".into(),
        identity => format!("for the program that speaks to nodes as {identity}, with the certificate"),
    };
    let next = match (done, &leaf.identity) {
        ("renewed", Identity::Node(node)) => {
            format!(
                "next, on {node}: copy both if you copied them before, then systemctl reload mesh-proxy\n"
            )
        }
        _ => String::new(),
    };
    print(&format!(
        "{done} CN={}{names}, valid until {}\n  {}\n  {} (mode 0600: {whose})\n{next}",
        leaf.common_name,
        day(leaf.not_after),
        issued.certificate.display(),
        issued.key.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn issued_json(issued: &Issued) -> serde_json::Value {
    let leaf = &issued.leaf;
    let names: Vec<_> =
        leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect();
    json!({
        "cn": leaf.common_name, "certificate": issued.certificate, "key": issued.key,
        "alternativeNames": names, "notAfter": leaf.not_after,
    })
}

/// Renews what ends within so many days. One that cannot be renewed keeps none of the others from it.
fn renew_all(
    ca: &Ca,
    within: u32,
    days: u32,
    key_type: Option<KeyType>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let (mut renewed, mut failed, mut later) = (Vec::new(), Vec::new(), 0);
    let mut text = String::new();
    let all = ca.examine(UnixTime::now())?;
    for each in all.iter().filter(|each| each.kind != Kind::Authority && each.state != State::Revoked) {
        let name = each.cn.clone().unwrap_or_else(|| each.path.display().to_string());
        let left = match each.days_left {
            Some(left) if left >= i64::from(within) => {
                later += 1;
                continue;
            }
            left => left,
        };
        let outcome = match (&each.identity, each.state, left) {
            (Some(identity), state, Some(left)) if state != State::Untrusted => {
                ca.renew_longer(identity, days, key_type, left).map_err(|error| error.to_string())
            }
            _ => Err(each.problems.first().cloned().unwrap_or_default()),
        };
        match outcome {
            Ok(issued) => {
                let until = day(issued.leaf.not_after);
                let was = left.map(|left| format!(" ({})", ends(left))).unwrap_or_default();
                text.push_str(&format!("renewed {name} until {until}{was}\n"));
                renewed.push(issued);
            }
            Err(error) => {
                text.push_str(&format!("{} {name}: {error}\n", paint(Colour::Red, "FAILED")));
                failed.push(json!({ "name": name, "error": error }));
            }
        }
    }
    if json {
        let renewed: Vec<_> = renewed.iter().map(issued_json).collect();
        print_json(&json!({ "renewed": renewed, "failed": failed, "endLater": later }))?;
    } else {
        text.push_str(&format!(
            "{} renewed, {} failed, {later} do not end within {within} days\n",
            renewed.len(),
            failed.len()
        ));
        if !renewed.is_empty() {
            text.push_str(
                "next, on their hosts: copy the files if you copied them before, then systemctl reload mesh-proxy\n",
            );
        }
        print(&text)?;
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_intermediate(ca: &Ca, new: &NewIntermediate, json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&json!({
            "cn": new.cn, "notAfter": new.not_after, "chain": ca.chain_path(), "key": ca.signing_key_path(),
            "formerKey": new.former_key,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let former = new.former_key.as_ref().map_or_else(String::new, |key| {
        format!("  old key           {} (only revokes what it has signed)\n", key.display())
    });
    print(&format!(
        "made a new intermediate, CN={}, valid until {}\n  signs from now on {}\n{former}  trusted by nodes  {} \
         (the old one too, until it ends)\n\
         next, in this order:\n\
         \x20 1. on every host: copy ca-chain.pem (and crl.pem) if you copied it before, then systemctl reload \
         mesh-proxy, so that it trusts the new one\n\
         \x20 2. only then issue and renew: those of the old one work until they end; meshctl ca renew --all \
         renews them in time\n\
         \x20 3. take the root's key offline again\n",
        new.cn,
        day(new.not_after),
        ca.signing_key_path().display(),
        ca.chain_path().display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Asks whether to revoke the certificates of a node's agents as well; where nobody can answer, no.
fn also_agents(agents: &[Identity]) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Ok(false);
    }
    print(&format!("{} Revoke them too? [y/N] ", agents_told(agents)))?;
    let mut answer = String::new();
    // Whoever cannot be heard has not agreed.
    let heard = std::io::stdin().lock().take(64).read_line(&mut answer).is_ok();
    Ok(heard && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn agents_told(agents: &[Identity]) -> String {
    let names: Vec<_> = agents.iter().map(ToString::to_string).collect();
    format!("the node's agents have certificates that still work: {}.", names.join(", "))
}

fn show_revoked(ca: &Ca, revoked: &[Revoked], agents: &[Identity], json: bool) -> Result<ExitCode, Failure> {
    let crl = ca.crl_path();
    if json {
        let all: Vec<_> = revoked
            .iter()
            .map(|each| {
                json!({
                    "cn": each.cn, "serial": each.serial, "certificate": each.path, "revokedBefore": each.before,
                })
            })
            .collect();
        let agents: Vec<_> = agents.iter().map(ToString::to_string).collect();
        print_json(&json!({ "revoked": all, "crl": crl, "agentsNotRevoked": agents }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for each in revoked {
        let Revoked { cn, serial, path, before } = each;
        let path = path.display();
        text.push_str(&match before {
            None => format!("revoked CN={cn}, serial number {serial}\n  {path}\n"),
            Some(since) => {
                format!("revoked since {} already: CN={cn}, serial number {serial}\n  {path}\n", day(*since))
            }
        });
    }
    if !agents.is_empty() {
        let commands: Vec<_> = agents.iter().map(|agent| format!("  meshctl ca revoke {agent}\n")).collect();
        text.push_str(&format!(
            "{} {} Whoever has the node may have their keys; revoke them too:\n{}",
            paint(Colour::Yellow, "warning:"),
            agents_told(agents),
            commands.concat()
        ));
    }
    let crl = crl.display();
    print(&format!(
        "{text}{crl} counts until the next one replaces it\nnext, on every host, or it goes on accepting them:\n  \
         the first time, name the list (or your copy of it) in mesh.yaml as proxy.crl_path: {crl}\n  and \
         systemctl restart mesh-proxy; after that it notices a new list by itself (systemctl reload mesh-proxy: at once)\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}
