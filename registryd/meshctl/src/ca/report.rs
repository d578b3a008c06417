//! What `meshctl ca` tells of certificates.

use std::path::Path;
use std::process::ExitCode;

use crate::Failure;
use crate::output::{Cell, Colour, Table, day, paint, print, print_json};
use mesh_ca::{Examined, Kind, Listed, Reason, RevokedSince, State, ends};

/// Each certificate with what is wrong or will be; exit code 1 if one cannot work that should.
pub(super) fn verify(all: &[Examined], json: bool) -> Result<ExitCode, Failure> {
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
            // Where the end is what matters, the line below says it, with what to do.
            let told = matches!(each.state, State::EndsSoon | State::Expired);
            let end = each.days_left.filter(|_| !told).map(|days| format!(", {}", ends(days)));
            let end = end.unwrap_or_default();
            text.push_str(&format!("{} {} {}{end}\n", paint(colour, mark), each.kind.as_str(), named(each)));
            for remark in each.problems.iter().chain(&each.remarks) {
                text.push_str(&format!("       {remark}\n"));
            }
        }
        text.push_str(&summary(all));
        print(&text)?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(all: &[Examined]) -> String {
    let count = |wanted: &dyn Fn(&Examined) -> bool| all.iter().filter(|each| wanted(each)).count();
    let failed = count(&|each| !each.problems.is_empty());
    let idle =
        |each: &Examined| each.problems.is_empty() && matches!(each.state, State::Revoked | State::Expired);
    let soon = count(&|each| each.state == State::EndsSoon);
    let revoked = count(&|each| each.state == State::Revoked);
    let mut text = format!("{} of {} certificates work", all.len() - failed - count(&idle), all.len());
    for (count, one, several) in [
        (soon, "of them ends soon", "of them end soon"),
        (revoked, "is revoked", "are revoked"),
        (failed, "cannot work", "cannot work"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {}", if count == 1 { one } else { several }));
        }
    }
    text + "\n"
}

/// A line for each certificate.
pub(super) fn list(all: &[Listed], json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        "CN",
        "KIND",
        "STATE",
        "VALID UNTIL",
        "",
        "ALTERNATIVE NAMES",
        "MAY HOST",
        "SERIAL NUMBER",
    ]);
    for Listed { examined: each, .. } in all {
        let colour = match each.state {
            State::Ok => Colour::Green,
            State::EndsSoon => Colour::Yellow,
            _ if each.problems.is_empty() => Colour::Faint,
            _ => Colour::Red,
        };
        let remark = match each.revoked {
            Some(RevokedSince { at, why: Reason::Unspecified }) => format!("since {}", day(at)),
            Some(RevokedSince { at, why }) => format!("since {}: {}", day(at), why.as_str()),
            None => each.days_left.map(ends).unwrap_or_default(),
        };
        let agents: Vec<_> = each.agents.iter().map(ToString::to_string).collect();
        table.row([
            named(each).into(),
            each.kind.as_str().into(),
            Cell::coloured(colour, each.state.as_str()),
            each.not_after.map(day).unwrap_or_default().into(),
            remark.into(),
            each.alternative_names.join(", ").into(),
            agents.join(", ").into(),
            each.serial.clone().unwrap_or_default().into(),
        ]);
    }
    print(&table.render())?;
    Ok(ExitCode::SUCCESS)
}

/// The CN, and the file where that is not named alike.
fn named(each: &Examined) -> String {
    let file = each.path.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    match &each.cn {
        None => file.into_owned(),
        Some(cn) if each.kind == Kind::Authority || each.state != State::Misnamed => cn.clone(),
        Some(cn) => format!("{cn} (in {file})"),
    }
}
