//! The database (`index.txt`) of a CA that RivetOS's `rivet-ca.sh` made. `openssl ca` makes its next revocation list from it, so
//! revocations must be entered there.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::CaError;
use crate::files::{read, replace};
use crate::reason::Reason;
use crate::record::Issuance;

/// Marks certificates as revoked in `index.txt`; nothing where there are no such books.
///
/// # Errors
/// They cannot be read or written.
pub(crate) fn mark_revoked(dir: &Path, issued: &[&Issuance], reason: Reason) -> Result<(), CaError> {
    let Some((path, mut text)) = book(dir, "index.txt")? else { return Ok(()) };
    let before = text.clone();
    for issuance in issued {
        text = marked(&text, issuance, reason, OffsetDateTime::now_utc());
    }
    match text == before {
        true => Ok(()),
        false => replace(&path, &text, 0o644),
    }
}

/// Enters a certificate as valid in `index.txt`; nothing where there are no such books, or where they may hold each subject only
/// once: then `openssl ca` would refuse them after a renewal.
///
/// # Errors
/// They cannot be read or written.
pub(crate) fn mark_issued(dir: &Path, issued: &Issuance) -> Result<(), CaError> {
    let several = book(dir, "index.txt.attr")?.is_some_and(|(_, text)| {
        text.lines().any(|line| line.split('=').map(str::trim).eq(["unique_subject", "no"]))
    });
    let Some((path, text)) = book(dir, "index.txt")?.filter(|_| several) else { return Ok(()) };
    let end = OffsetDateTime::from_unix_timestamp(issued.not_after).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (end, serial, name) = (stamp(end), even(issued.serial.to_uppercase()), &issued.name);
    replace(&path, &format!("{text}V\t{end}\t\t{serial}\tunknown\t/CN={name}\n"), 0o644)
}

/// Lets `openssl ca` go on behind this number of a list.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn keep_number(dir: &Path, number: u128) -> Result<(), CaError> {
    let Some((path, text)) = book(dir, "crlnumber")? else { return Ok(()) };
    let kept = u128::from_str_radix(text.trim(), 16).unwrap_or_default();
    match number.checked_add(1).filter(|next| *next > kept) {
        Some(next) => replace(&path, &(even(format!("{next:X}")) + "\n"), 0o644),
        None => Ok(()),
    }
}

fn book(dir: &Path, name: &str) -> Result<Option<(PathBuf, String)>, CaError> {
    let path = dir.join("intermediate").join(name);
    match read(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(CaError::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The index with a certificate marked as revoked. A line has: state, end, time of revocation and the reason, serial number,
/// file, subject.
fn marked(text: &str, issued: &Issuance, reason: Reason, now: OffsetDateTime) -> String {
    let serial = even(issued.serial.to_uppercase());
    let same =
        |field: &str| field.trim_start_matches('0').eq_ignore_ascii_case(serial.trim_start_matches('0'));
    let since = stamp(now) + &named(reason).map(|reason| format!(",{reason}")).unwrap_or_default();
    let (mut lines, mut found) = (Vec::new(), false);
    for line in text.lines() {
        let mut fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
        if fields.len() >= 6 && same(&fields[3]) {
            found = true;
            if fields[0] != "R" {
                (fields[0], fields[2]) = ("R".into(), since.clone());
            }
        }
        lines.push(fields.join("\t"));
    }
    if !found {
        let end = OffsetDateTime::from_unix_timestamp(issued.not_after).unwrap_or(now);
        let subject = format!("/CN={}", issued.name);
        lines.push(format!("R\t{}\t{since}\t{serial}\tunknown\t{subject}", stamp(end)));
    }
    lines.join("\n") + "\n"
}

/// openssl's word for a reason; it refuses books with one that it does not know.
fn named(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::KeyCompromise => Some("keyCompromise"),
        Reason::CaCompromise => Some("CACompromise"),
        Reason::AffiliationChanged => Some("affiliationChanged"),
        Reason::Superseded => Some("superseded"),
        Reason::CessationOfOperation => Some("cessationOfOperation"),
        _ => None,
    }
}

/// As openssl writes times there.
fn stamp(time: OffsetDateTime) -> String {
    let format = format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
    time.format(format).unwrap_or_default()
}

/// openssl reads whole bytes.
fn even(digits: String) -> String {
    if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") }
}
