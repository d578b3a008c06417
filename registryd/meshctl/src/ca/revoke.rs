//! `meshctl ca revoke` and `refresh-lists`.

use std::io::{BufRead, IsTerminal, Read};
use std::process::ExitCode;

use mesh_ca::{Ca, Refreshed, Revoked};
use mesh_shared::identity::Identity;
use serde_json::json;

use crate::Failure;
use crate::output::{Colour, day, paint, print, print_json};

/// Asks whether to revoke the certificates of a node's agents as well; where nobody can answer, no.
pub(super) fn also_agents(agents: &[Identity]) -> Result<bool, Failure> {
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

pub(super) fn show_revoked(
    ca: &Ca,
    revoked: &[Revoked],
    agents: &[Identity],
    json: bool,
) -> Result<ExitCode, Failure> {
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
        print_json(
            &json!({ "revoked": all, "crl": crl, "crlEnds": ca.lists_end()?, "agentsNotRevoked": agents }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for each in revoked {
        let Revoked { cn, serial, path, before } = each;
        let path = path.as_ref().map(|path| format!("  {}\n", path.display())).unwrap_or_default();
        text.push_str(&match before {
            None => format!("revoked CN={cn}, serial number {serial}\n{path}"),
            Some(since) => {
                format!("revoked since {} already: CN={cn}, serial number {serial}\n{path}", day(*since))
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
        "{text}{}next, on every host, or it goes on accepting them:\n  \
         the first time, name the list (or your copy of it) in mesh.yaml as proxy.crl_path: {crl}\n  and \
         systemctl restart mesh-proxy; after that it notices a new list by itself (systemctl reload mesh-proxy: at once)\n",
        lists_told(ca)?
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Signs again what has to be.
pub(super) fn refresh_lists(ca: &Ca, days: u32, json: bool) -> Result<ExitCode, Failure> {
    let refreshed = ca.refresh_lists(days)?;
    if json {
        let failed =
            refreshed.failed.iter().map(|(cn, error)| json!({ "cn": cn, "error": error.to_string() }));
        let failed: Vec<_> = failed.collect();
        print_json(&json!({
            "signed": refreshed.signed, "failed": failed, "crl": ca.crl_path(), "crlEnds": ca.lists_end()?,
        }))?;
    } else {
        let text = refreshed_text(ca, &refreshed)?;
        let none = "no list is past half of its life\n";
        let text = if text.is_empty() { format!("{none}{}", lists_told(ca)?) } else { text };
        print(&text)?;
    }
    Ok(if refreshed.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was signed again and what could not be; empty if neither.
pub(super) fn refreshed_text(ca: &Ca, refreshed: &Refreshed) -> Result<String, Failure> {
    let mut text = String::new();
    for cn in &refreshed.signed {
        text.push_str(&format!("signed a new revocation list for CN={cn}\n"));
    }
    for (cn, error) in &refreshed.failed {
        text.push_str(&format!("{} the revocation list of CN={cn}: {error}\n", paint(Colour::Red, "FAILED")));
    }
    if !text.is_empty() {
        text.push_str(&lists_told(ca)?);
    }
    Ok(text)
}

/// When the lists end and what keeps them from it.
pub(super) fn lists_told(ca: &Ca) -> Result<String, Failure> {
    let crl = ca.crl_path();
    Ok(match ca.lists_end()? {
        None => String::new(),
        Some(end) => format!(
            "{} is valid until {}. It must be signed again before that, or hosts that read it refuse everyone: enable \
             mesh-ca-renew.timer here (or `meshctl ca serve`), or run `meshctl ca refresh-lists` in time\n",
            crl.display(),
            day(end)
        ),
    })
}
