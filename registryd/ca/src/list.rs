//! Everything that was issued: what is in the folder, and what only the index knows.

use std::cmp::Reverse;

use rustls::pki_types::UnixTime;
use serde::Serialize;

use crate::certificate::days_until;
use crate::error::CaError;
use crate::index::Entry;
use crate::inspect::{Examined, Kind, RevokedSince, State};
use crate::model::Ca;
use crate::record::Origin;

/// A certificate, whether it is in the folder or not.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// How it is with it.
    #[serde(flatten)]
    pub examined: Examined,
    /// Whether it is the one that counts under its name; of those before, only dates and revocation are looked at.
    pub current: bool,
    /// When it was issued, epoch seconds; `None` of an authority.
    pub issued_at: Option<i64>,
    /// How it came to be; `None` of an authority.
    pub issued_why: Option<Origin>,
    /// Who asked for it, where that is known.
    pub issued_by: Option<String>,
}

impl Ca {
    /// Every certificate that has not ended, and with `all` those that have; authorities first, then by name, the newest first.
    ///
    /// # Errors
    /// As [`Ca::examine`].
    pub fn list(&self, now: UnixTime, all: bool) -> Result<Vec<Listed>, CaError> {
        let (authorities, lists) = (self.authorities()?, self.lists()?);
        let (index, _) = self.survey(&authorities, &lists)?;
        let mut listed = Vec::new();
        let mut shown = vec![false; index.entries.len()];
        for examined in self.examine(now)? {
            // In the folder, each has a file of its own.
            let place = index.entries.iter().position(|entry| {
                examined.kind != Kind::Authority && entry.path.is_some() && entry.path == examined.path
            });
            let entry = place.map(|at| &index.entries[at]);
            if let Some(at) = place {
                shown[at] = true;
            }
            listed.push(Listed {
                current: true,
                issued_at: entry.map(|entry| entry.issuance.at),
                issued_why: entry.map(|entry| entry.issuance.why),
                issued_by: entry.map(|entry| entry.issuance.by.clone()).filter(|by| !by.is_empty()),
                examined,
            });
        }
        let others = index
            .entries
            .iter()
            .zip(&shown)
            .filter(|(entry, shown)| !**shown && (all || !entry.has_ended(now)));
        listed.extend(others.map(|(entry, _)| former(entry, now)));
        listed.sort_by_cached_key(|each| {
            let authority = each.examined.kind == Kind::Authority;
            let name = if authority { None } else { each.examined.cn.clone() };
            (!authority, name, !each.current, Reverse(each.issued_at))
        });
        Ok(listed)
    }
}

/// One that is no longer in the folder, or is not the current one.
fn former(entry: &Entry, now: UnixTime) -> Listed {
    let issuance = &entry.issuance;
    let kind = entry.identity().as_ref().map_or(Kind::Unknown, Kind::from);
    let revoked = entry.revoked.as_ref().map(|revoked| RevokedSince { at: revoked.at, why: revoked.why });
    let state = match (&revoked, entry.has_ended(now)) {
        (Some(_), _) => State::Revoked,
        (None, true) => State::Expired,
        (None, false) => State::Superseded,
    };
    let (ids, names): (Vec<_>, Vec<_>) =
        issuance.names.iter().cloned().partition(|name| name.starts_with("spiffe://"));
    let mut examined = Examined::new(kind, entry.path.as_deref().unwrap_or("".as_ref()));
    examined.path.clone_from(&entry.path);
    examined.cn = Some(issuance.name.clone());
    examined.serial = Some(issuance.serial.clone());
    examined.alternative_names = names;
    examined.agents = entry.hosted(&ids);
    examined.not_after = Some(issuance.not_after);
    examined.days_left = Some(days_until(issuance.not_after, now));
    (examined.revoked, examined.state) = (revoked, state);
    examined.key_elsewhere = issuance.why == Origin::Signed;
    Listed {
        examined,
        current: false,
        issued_at: Some(issuance.at),
        issued_why: Some(issuance.why),
        issued_by: Some(issuance.by.clone()).filter(|by| !by.is_empty()),
    }
}
