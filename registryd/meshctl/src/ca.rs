//! `meshctl ca …`.

mod authority;
mod issue;
mod report;
mod revoke;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use mesh_shared::identity::Identity;
use mesh_shared::name::{AgentName, NodeName};
use mesh_shared::spiffe::TrustDomain;
use rustls::pki_types::UnixTime;

use crate::{Failure, identity, node_name};
use authority::{show_intermediate, show_made, show_retired, show_root};
use issue::{renew_all, show_issued, sign};
use mesh_ca::{
    CRL_DAYS, Ca, DEFAULT_DIR, DEFAULT_ROOT_DIR, KeyType, LEAF_DAYS, Order, RENEW_WITHIN_DAYS, Reason,
    Renewal, Which,
};
use report::{list, verify};
use revoke::{also_agents, refresh_lists, show_revoked};

/// Arguments of `meshctl ca`.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// The CA's folder, from which nodes may read ca-chain.pem and their own certificates
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
    /// Make a new CA: a root, a signing intermediate, and the chain that nodes trust
    Init {
        /// Where the root's key goes; keep it on one host, or take it offline
        #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
        root_dir: PathBuf,
        /// Kind of the CA's keys
        #[arg(long, value_enum, default_value_t)]
        key_type: KeyType,
        /// The trust domain of the SPIFFE IDs in certificates (spiffe://<NAME>/node/ct110)
        #[arg(long, value_name = "NAME", default_value_t)]
        trust_domain: TrustDomain,
    },
    /// Issue a node's certificate and key: CN=<NODE>, valid for <NODE>.mesh and the given names
    IssueNode {
        /// The node, as in mesh.node_name
        #[arg(value_parser = node_name)]
        node: NodeName,
        /// Additional host names and addresses of the node, such as its mesh IP
        san: Vec<String>,
        /// The agents that the node may host, as in grok,scout; peers with `mesh.agents: certified` accept no others
        #[arg(long, value_name = "AGENT", value_delimiter = ',')]
        agents: Vec<AgentName>,
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
    /// Replace an issued certificate and its key, with the same names and new dates
    ///
    /// The node's mesh-proxy loads the new files within seconds; no connection is interrupted.
    Renew {
        /// A node (ct110), agent (opus@ct110) or device (device:phone-1)
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Renew every certificate that expires soon or has expired, except revoked ones; for a daily timer
        #[arg(long)]
        all: bool,
        /// With --all: renew what expires within this number of days
        #[arg(long, value_name = "DAYS", requires = "all", default_value_t = RENEW_WITHIN_DAYS)]
        within: u32,
        /// Validity in days (never longer than the CA's)
        #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Kind of the new key [default: that of the old one]
        #[arg(long, value_enum)]
        key_type: Option<KeyType>,
        /// The agents that the node may host from now on [default: as before]
        #[arg(long, value_name = "AGENT", value_delimiter = ',', conflicts_with = "all")]
        agents: Option<Vec<AgentName>>,
        #[command(flatten)]
        lists: ListArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Sign the request that `meshctl csr` wrote, for a key that stays with its owner
    ///
    /// Names, agents and dates are taken from this command line, not from the request. If there already is a certificate of that
    /// name, its names and agents are kept unless others are given.
    Sign {
        /// The request; its common name is the identity (ct110, opus@ct110, device:phone-1)
        file: PathBuf,
        /// Additional host names and addresses of a node, such as its mesh IP
        san: Vec<String>,
        /// The agents that the node may host, as in grok,scout
        #[arg(long, value_name = "AGENT", value_delimiter = ',')]
        agents: Option<Vec<AgentName>>,
        /// Validity in days (never longer than the CA's)
        #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Make a new intermediate, signed by the root, which signs from now on
    ///
    /// For an intermediate that expires soon, or whose key is lost. The old one stays in ca-chain.pem until it expires, so that
    /// certificates of both work; its key is kept, to revoke what it has signed. Run this where the root's key is. Afterwards,
    /// every host must load the new ca-chain.pem before certificates are renewed.
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
    /// Make a new root, which signs the next intermediate; the old root stays trusted
    ///
    /// For a root that expires soon, or whose key may have been stolen. ca-chain.pem then contains both roots. First let every
    /// host load it; then run `renew-intermediate`, renew all certificates, and finally remove the old ones with `retire`. Run
    /// this where the root's key is.
    RenewRoot {
        /// The folder with root.crt and root.key
        #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
        root_dir: PathBuf,
        /// Kind of the new key [default: that of the old one]
        #[arg(long, value_enum)]
        key_type: Option<KeyType>,
    },
    /// Remove a former intermediate or root from ca-chain.pem, once no valid certificate depends on it
    Retire {
        /// Its common name, the last word of that, or its serial number
        authority: String,
        /// Remove it even if certificates depend on it; nodes will refuse those
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Make peers refuse a certificate before it expires, such as that of a compromised host
    ///
    /// Writes intermediate/crl.pem, which nodes read from the folder and pass on to each other. A revoked certificate cannot be
    /// made valid again; `meshctl ca renew` issues a new one to its owner.
    Revoke {
        /// A node (ct110), agent (opus@ct110) or device (device:phone-1): all its unexpired certificates, including
        /// those that have been renewed since
        #[arg(required_unless_present_any = ["serial", "file"], conflicts_with_all = ["serial", "file"])]
        name: Option<String>,
        /// Only the one with this serial number
        #[arg(long, value_name = "HEX", conflicts_with = "file")]
        serial: Option<String>,
        /// The certificate in this file, which may be outside the CA's folder
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The reason, which is recorded in the list and in the index
        #[arg(long, value_enum, default_value_t)]
        reason: Reason,
        /// For a node: revoke the certificates of its agents too; without this they are listed, and on a terminal you are asked
        #[arg(long, conflicts_with_all = ["serial", "file"])]
        with_agents: bool,
        #[command(flatten)]
        lists: ListArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Sign again each revocation list that is past half its life; peers may refuse everyone once a list has expired
    ///
    /// Meant for a timer. `meshctl ca renew --all` and `meshctl ca serve` do this too.
    RefreshLists {
        #[command(flatten)]
        lists: ListArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Run the CA's process, through which hosts join (`meshctl join`) and members renew their certificates
    ///
    /// The only process that needs the signing key; deploy/systemd/mesh-ca.service runs it as a user of its own.
    Serve {
        #[command(flatten)]
        serve: Box<serve::ServeArgs>,
        #[command(flatten)]
        lists: ListArgs,
        #[command(flatten)]
        signing: SigningArgs,
    },
    /// Check every certificate as peers will; exit code 1 if one that is not revoked would not work
    Verify,
    /// List all unexpired certificates, with names, dates and serial numbers
    List {
        /// Include expired certificates
        #[arg(long)]
        all: bool,
    },
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
struct ListArgs {
    /// Validity of revocation lists in days; they must be signed again in time
    #[arg(long, value_name = "DAYS", default_value_t = CRL_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    crl_days: u32,
}

#[derive(Debug, Args)]
struct SigningArgs {
    /// The signing key, if it was moved off the shared folder [default: <DIR>/intermediate/intermediate.key]
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
}

/// Does what was asked.
///
/// # Errors
/// See [`mesh_ca::CaError`].
pub async fn run(args: CaArgs) -> Result<ExitCode, Failure> {
    let (ca, json) = (Ca::at(&args.dir), args.json);
    let issue = |identity: Identity, names, agents, leaf: LeafArgs, signing: SigningArgs| {
        let LeafArgs { days, key_type } = leaf;
        let order = Order { identity, alternative_names: names, agents, days, key_type };
        show_issued("issued", &ca.clone().signing_with(signing.signing_key).issue(&order)?, json)
    };
    match args.command {
        Command::Init { root_dir, key_type, trust_domain } => {
            let above = ca.init(&root_dir, key_type, &trust_domain)?;
            show_made(&ca, &args.dir, &root_dir, above.as_deref(), json)
        }
        Command::IssueNode { node, san, agents, leaf, signing } => {
            issue(Identity::Node(node), san, agents, leaf, signing)
        }
        Command::IssueAgent { agent, leaf, signing } => match identity(&agent)? {
            identity @ Identity::Agent(..) => issue(identity, Vec::new(), Vec::new(), leaf, signing),
            _ => Err(Failure::Usage(format!(
                "{agent:?} is not an agent on a node; expected <agent>@<node>, as in opus@ct110"
            ))),
        },
        Command::IssueDevice { name, leaf, signing } => {
            let identity = identity(&format!("device:{}", name.trim_start_matches("device:")))?;
            issue(identity, Vec::new(), Vec::new(), leaf, signing)
        }
        Command::Renew { name, within, days, key_type, agents, lists, signing, all: _ } => {
            let ca = ca.signing_with(signing.signing_key);
            let renewal = Renewal { days, key_type, agents };
            match name {
                Some(name) => show_issued("renewed", &ca.renew(&identity(&name)?, &renewal)?, json),
                None => renew_all(&ca, within, &renewal, lists.crl_days, json),
            }
        }
        Command::Sign { file, san, agents, days, signing } => {
            sign(&ca.signing_with(signing.signing_key), &file, san, agents, days, json)
        }
        Command::RenewIntermediate { root_dir, key_type, signing } => {
            let ca = ca.signing_with(signing.signing_key);
            show_intermediate(&ca, &ca.renew_intermediate(&root_dir, key_type)?, json)
        }
        Command::RenewRoot { root_dir, key_type } => {
            show_root(&ca, &ca.renew_root(&root_dir, key_type)?, json)
        }
        Command::Retire { authority, force, signing } => {
            let ca = ca.signing_with(signing.signing_key);
            show_retired(&ca, &ca.retire(&authority, force)?, json)
        }
        Command::Revoke { name, serial, file, reason, with_agents, lists, signing } => {
            let which = match (name, serial, file) {
                (_, Some(serial), _) => Which::Serial(serial),
                (_, _, Some(file)) => Which::File(file),
                (name, None, None) => Which::Named(identity(&name.unwrap_or_default())?),
            };
            let ca = ca.signing_with(signing.signing_key);
            let revoke = |which: &Which| ca.revoke(which, reason, lists.crl_days);
            let mut revoked = revoke(&which)?;
            let mut agents = match &which {
                Which::Named(Identity::Node(node)) => ca.agents_of(node)?,
                _ => Vec::new(),
            };
            if !agents.is_empty() && (with_agents || (!json && also_agents(&agents)?)) {
                for agent in std::mem::take(&mut agents) {
                    revoked.extend(revoke(&Which::Named(agent))?);
                }
            }
            show_revoked(&ca, &revoked, &agents, json)
        }
        Command::RefreshLists { lists, signing } => {
            refresh_lists(&ca.signing_with(signing.signing_key), lists.crl_days, json)
        }
        Command::Serve { serve, lists, signing } => {
            serve::run(*serve, ca.signing_with(signing.signing_key), &args.dir, lists.crl_days).await
        }
        Command::Verify => {
            // Whoever may not change the folder can still look; what is wrong with it then shows below.
            let _ = ca.mend();
            verify(&ca.examine(UnixTime::now())?, json)
        }
        Command::List { all } => list(&ca.list(UnixTime::now(), all)?, json),
    }
}
