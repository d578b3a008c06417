//! How long a verdict about a peer's certificate is valid: until a certificate of its chain or a revocation list ends,
//! or new files are read. Both directions judge their connections by this, full handshakes and resumed ones alike.

use std::time::Duration;

use mesh_shared::certificate::not_after;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::tls::credentials::{CredentialStore, Credentials};

/// A clock that was set meanwhile is noticed within this.
const LOOKS: Duration = Duration::from_secs(3600);

/// Returns why a connected peer is no longer trusted, once it is not. `judge` says whether credentials accept it now;
/// `replaced` tells of new ones, and was subscribed to before the handshake.
pub async fn lost(
    store: &CredentialStore,
    mut replaced: watch::Receiver<()>,
    chain: &[CertificateDer<'_>],
    judge: impl Fn(&Credentials) -> Result<(), rustls::Error>,
) -> rustls::Error {
    loop {
        // Not kept while this sleeps: after a reload, the files of before need not stay in memory.
        let left = next_look(ends(&store.load(), chain), UnixTime::now().as_secs());
        tokio::select! {
            // Fails only when the sidecar ends.
            _ = replaced.changed() => {}
            () = tokio::time::sleep(left) => {}
        }
        if let Err(reason) = judge(&store.load()) {
            return reason;
        }
    }
}

/// How long the first certificate of a chain to end is still good; zero if it has ended.
pub fn left(chain: &[CertificateDer<'_>], now: UnixTime) -> Duration {
    let end = chain.iter().filter_map(not_after).min().unwrap_or(i64::MAX);
    Duration::from_secs(u64::try_from(end).unwrap_or_default().saturating_sub(now.as_secs()))
}

/// Judges the peer of a resumed session. Sessions live and die with the credentials under which they began, so what
/// these said at the time holds until something ends; then `judge` is asked again.
///
/// # Errors
/// As `judge` says.
pub fn judge_resumed(
    credentials: &Credentials,
    chain: &[CertificateDer<'_>],
    judge: impl Fn(&Credentials) -> Result<(), rustls::Error>,
) -> Result<(), rustls::Error> {
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let mut since = ends(credentials, chain).filter(|change| *change > credentials.made);
    match since.all(|change| now < change) {
        true => Ok(()),
        false => judge(credentials),
    }
}

/// When the certificates of a chain are no longer good, and other CA certificates or revocation lists count, epoch
/// seconds.
fn ends(credentials: &Credentials, chain: &[CertificateDer<'_>]) -> impl Iterator<Item = i64> {
    // A certificate is good in its last second, a list is not (RFC 5280, sections 4.1.2.5 and 5.1.2.5).
    let chain = chain.iter().filter_map(not_after).map(|end| end.saturating_add(1));
    chain.chain(credentials.changes())
}

/// How long the verdict of `now` holds, with certificates and lists that are good until `ends`, epoch seconds.
fn next_look(ends: impl Iterator<Item = i64>, now: u64) -> Duration {
    let coming = ends.filter_map(|end| u64::try_from(end).ok()?.checked_sub(now).filter(|left| *left > 0));
    coming.min().map_or(LOOKS, Duration::from_secs).min(LOOKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_until_the_first_end_that_is_to_come() {
        let look = |ends: &[i64]| next_look(ends.iter().copied(), 1_000).as_secs();
        assert_eq!(look(&[1_300, 1_020, 1_500]), 20);
        assert_eq!(look(&[900, 1_000, 1_050]), 50, "what has ended was judged already");
        assert_eq!(look(&[]), LOOKS.as_secs());
        assert_eq!(look(&[i64::MAX, i64::MIN, -1]), LOOKS.as_secs());
    }
}
