//! `meshctl ca issue-…`, `renew` and `sign`: leaves.

use std::path::Path;
use std::process::ExitCode;

use mesh_ca::{Ca, Issued, Kind, Order, Renewal, Signed, SigningRequest, State, ends};
use mesh_shared::certificate::Leaf;
use mesh_shared::identity::Identity;
use mesh_shared::name::AgentName;
use rustls::pki_types::UnixTime;
use serde_json::json;

use super::revoke::refreshed_text;
use crate::Failure;
use crate::output::{Colour, day, paint, print, print_json};

pub(super) fn show_issued(done: &str, issued: &Issued, json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&issued_json(issued))?;
        return Ok(ExitCode::SUCCESS);
    }
    let leaf = &issued.leaf;
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
        "{done} {}\n  {}\n  {} (mode 0600: {whose})\n{next}",
        described(leaf),
        issued.certificate.display(),
        issued.key.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Signs the request in a file. Where there is a certificate of that name, what is not given is taken from it.
pub(super) fn sign(
    ca: &Ca,
    file: &Path,
    names: Vec<String>,
    agents: Option<Vec<AgentName>>,
    days: u32,
    json: bool,
) -> Result<ExitCode, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Said(format!("cannot read {}: {error}", file.display())))?;
    let request = SigningRequest::from_pem(&text).map_err(mesh_ca::CaError::from)?;
    let identity = request.identity().clone();
    let before = match names.is_empty() || agents.is_none() {
        true => ca.issued_before(&identity)?,
        false => None,
    };
    let signed = match before {
        Some(old) if names.is_empty() && agents.is_none() => ca.sign_renewal(&request, &old, days)?,
        before => {
            let mut order = match before {
                Some(old) => Order::like(&old, &identity)?,
                None => Order::new(identity, Vec::new()),
            };
            order.days = days;
            if !names.is_empty() {
                order.alternative_names = names;
            }
            if let Some(agents) = agents {
                order.agents = agents;
            }
            ca.sign(&request, &order)?
        }
    };
    show_signed(ca, &signed, json)
}

fn show_signed(ca: &Ca, signed: &Signed, json: bool) -> Result<ExitCode, Failure> {
    let Signed { certificate, leaf, .. } = signed;
    if json {
        print_json(&json!({
            "cn": leaf.common_name, "certificate": certificate, "chain": ca.chain_path(),
            "alternativeNames": names_of(leaf), "notAfter": leaf.not_after,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "signed {}\n  {}\nnext: carry it to the host that made the request, with {}; neither is secret\n",
        described(leaf),
        certificate.display(),
        ca.chain_path().display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn described(leaf: &Leaf) -> String {
    let hosted = match &leaf.identity {
        Identity::Node(_) => leaf.agents(),
        _ => Vec::new(),
    };
    let list = |before: &str, names: Vec<String>| match names.is_empty() {
        true => String::new(),
        false => format!("{before}{}", names.join(", ")),
    };
    format!(
        "CN={}{}{}, valid until {}",
        leaf.common_name,
        list(" for ", names_of(leaf)),
        list(", may host ", hosted.iter().map(ToString::to_string).collect()),
        day(leaf.not_after)
    )
}

/// Host names and addresses.
fn names_of(leaf: &Leaf) -> Vec<String> {
    leaf.dns_names.iter().cloned().chain(leaf.addresses.iter().map(ToString::to_string)).collect()
}

fn issued_json(issued: &Issued) -> serde_json::Value {
    let leaf = &issued.leaf;
    let agents: Vec<_> = leaf.agents().iter().map(ToString::to_string).collect();
    json!({
        "cn": leaf.common_name, "certificate": issued.certificate, "key": issued.key,
        "alternativeNames": names_of(leaf), "agents": agents, "notAfter": leaf.not_after,
    })
}

/// Renews what ends within so many days, and signs the revocation lists again that need it. One that cannot be renewed keeps none
/// of the others from it.
pub(super) fn renew_all(
    ca: &Ca,
    within: u32,
    renewal: &Renewal,
    crl_days: u32,
    json: bool,
) -> Result<ExitCode, Failure> {
    let (mut renewed, mut failed, mut later, mut elsewhere) = (Vec::new(), Vec::new(), 0, 0);
    let mut text = String::new();
    let all = ca.examine(UnixTime::now())?;
    for each in all.iter().filter(|each| each.kind != Kind::Authority && each.state != State::Revoked) {
        if each.key_elsewhere {
            elsewhere += 1;
            continue;
        }
        let file = || each.path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        let name = each.cn.clone().unwrap_or_else(file);
        let left = match each.days_left {
            Some(left) if left >= i64::from(within) => {
                later += 1;
                continue;
            }
            left => left,
        };
        let outcome = match (&each.identity, each.state, left) {
            (Some(identity), state, Some(_)) if state != State::Untrusted => {
                ca.renew_ending(identity, renewal, within).map_err(|error| error.to_string())
            }
            _ => Err(each.problems.first().cloned().unwrap_or_default()),
        };
        match outcome {
            Ok(Some(issued)) => {
                let until = day(issued.leaf.not_after);
                let was = left.map(|left| format!(" ({})", ends(left))).unwrap_or_default();
                text.push_str(&format!("renewed {name} until {until}{was}\n"));
                renewed.push(issued);
            }
            // Somebody else just did.
            Ok(None) => later += 1,
            Err(error) => {
                text.push_str(&format!("{} {name}: {error}\n", paint(Colour::Red, "FAILED")));
                failed.push(json!({ "name": name, "error": error }));
            }
        }
    }
    let lists = ca.refresh_lists(crl_days)?;
    let well = failed.is_empty() && lists.failed.is_empty();
    if json {
        let renewed: Vec<_> = renewed.iter().map(issued_json).collect();
        let unsigned: Vec<_> =
            lists.failed.iter().map(|(cn, error)| json!({ "cn": cn, "error": error.to_string() })).collect();
        print_json(&json!({
            "renewed": renewed, "failed": failed, "endLater": later, "renewThemselves": elsewhere,
            "listsSigned": lists.signed, "listsFailed": unsigned,
        }))?;
    } else {
        text.push_str(&format!(
            "{} renewed, {} failed, {later} do not end within {within} days",
            renewed.len(),
            failed.len()
        ));
        if elsewhere > 0 {
            text.push_str(&format!(", {elsewhere} are renewed by their owners, who have the keys"));
        }
        text.push('\n');
        if !renewed.is_empty() {
            text.push_str(
                "next, on their hosts: copy the files if you copied them before, then systemctl reload mesh-proxy\n",
            );
        }
        text.push_str(&refreshed_text(ca, &lists)?);
        print(&text)?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
