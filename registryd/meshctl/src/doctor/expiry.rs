//! How soon certificates and lists expire, and how far clocks differ. Pure.

use std::time::Duration;

use mesh_shared::config::Config;
use mesh_shared::local_api::{NodeView, SeenCertificate};
use rustls::pki_types::UnixTime;

use super::mend;
use super::report::{Finding, Outcome, Step};
use crate::output::duration;

const DAY: i64 = 86_400;
/// A certificate that ends within so many seconds is a warning, and one that ends within [`CERTIFICATE_FAIL`] a failure.
const CERTIFICATE_WARN: i64 = 7 * DAY;
const CERTIFICATE_FAIL: i64 = DAY;
/// The same for revocation lists, which live for 14 days and are signed again after 7.
const LIST_WARN: i64 = 3 * DAY;
const LIST_FAIL: i64 = DAY;
/// Clocks that are apart by more are a warning, or a failure: certificates that were just made would not be valid yet.
const SKEW_WARN_MS: i64 = 5_000;
const SKEW_FAIL_MS: i64 = 60_000;

/// What is to be said of a node's certificate that ends soon; `None`: it does not.
///
/// Of a life that is shorter than usual, a quarter is soon and a twentieth very soon: such certificates renew themselves at half
/// their life.
pub fn certificate(step: Step, config: &Config, seen: &SeenCertificate, now: UnixTime) -> Option<Finding> {
    let life = seen.not_before.map_or(i64::MAX, |begin| seen.not_after.saturating_sub(begin));
    let (warn, fail) = (CERTIFICATE_WARN.min(life / 4), CERTIFICATE_FAIL.min(life / 20));
    let left = seen.not_after - now.as_secs() as i64;
    let outcome = near(left, warn, fail)?;
    let node = &seen.node;
    let finding = Finding::new(step, outcome, format!("the certificate of {node} {}", ends(left)));
    let finding = Finding { node: Some(node.to_string()), ..finding };
    Some(finding.because("it was not renewed").run_on(mend::CA_HOST, mend::certificate(config, node)))
}

/// What is to be said of revocation lists of which the first ends at `end`, and whose end refuses peers or not.
pub fn lists(end: Option<i64>, required: bool, now: UnixTime) -> Finding {
    let Some(end) = end else { return Finding::ok(Step::Revocation, "there are no revocation lists") };
    let left = end - now.as_secs() as i64;
    let said = format!("the first revocation list {}", ends(left));
    let Some(outcome) = near(left, LIST_WARN, LIST_FAIL) else { return Finding::ok(Step::Revocation, said) };
    let (outcome, cause) = match required {
        true => (outcome, "with its end nobody of its CA is accepted any more (proxy.crl_path)"),
        false => {
            (Outcome::Warn, "with its end it still refuses whom it names, and newer revocations are missing")
        }
    };
    Finding::new(Step::Revocation, outcome, said)
        .because(cause)
        .run_on(mend::CA_HOST, "sudo meshctl ca refresh-lists")
}

/// What is to be said of a node whose clock differs from this host's; `None`: it does not, as far as that is seen.
pub fn clock(view: &NodeView, heartbeat: Duration) -> Option<Finding> {
    let skew = view.skew_ms.filter(|_| !view.local && view.node.heartbeats())?;
    // The first look may come a whole interval after the heartbeat that it sees.
    let late = if skew < 0 { i64::try_from(heartbeat.as_millis()).unwrap_or(i64::MAX) } else { 0 };
    let apart = skew.saturating_abs().saturating_sub(late);
    if apart <= SKEW_WARN_MS {
        return None;
    }
    let outcome = if apart <= SKEW_FAIL_MS { Outcome::Warn } else { Outcome::Fail };
    let node = &view.node.name;
    let side = if skew > 0 { "ahead of" } else { "behind" };
    let apart = duration(skew.unsigned_abs());
    let finding =
        Finding::new(Step::Clock, outcome, format!("the clock of {node} is {apart} {side} this host's"));
    Some(
        Finding { node: Some(node.clone()), ..finding }
            .because("one of the two is not synchronised; certificates made on one may not be valid yet on the other")
            .run_on(format!("{node}, or here"), "timedatectl timesync-status; sudo timedatectl set-ntp true"),
    )
}

fn near(left: i64, warn: i64, fail: i64) -> Option<Outcome> {
    match left {
        _ if left <= fail => Some(Outcome::Fail),
        _ if left <= warn => Some(Outcome::Warn),
        _ => None,
    }
}

fn ends(left: i64) -> String {
    let time = duration(left.unsigned_abs().saturating_mul(1_000));
    if left < 0 { format!("ended {time} ago") } else { format!("ends in {time}") }
}

#[cfg(test)]
mod tests {
    use mesh_shared::registry::Node;

    use super::*;

    #[test]
    fn an_end_is_near_by_the_length_of_the_life() {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000_000));
        let config = Config::parse("mesh: {enabled: true, node_name: ct110, tls: true}").unwrap();
        let judged = |life: Option<i64>, left: i64| {
            let not_after = 1_000_000_000 + left;
            let seen = SeenCertificate {
                node: "ct111".parse().unwrap(),
                agents: Vec::new(),
                seen_at: 0,
                not_before: life.map(|life| not_after - life),
                not_after,
            };
            certificate(Step::Expiry, &config, &seen, now).map(|finding| finding.outcome)
        };
        for (life, left, expected) in [
            (Some(90 * DAY), 8 * DAY, None),
            (None, 8 * DAY, None),
            (Some(90 * DAY), 7 * DAY, Some(Outcome::Warn)),
            (Some(90 * DAY), DAY, Some(Outcome::Fail)),
            (Some(90 * DAY), -1, Some(Outcome::Fail)),
            (Some(7 * DAY), 3 * DAY, None),
            (Some(7 * DAY), DAY, Some(Outcome::Warn)),
            (Some(DAY), DAY / 2, None),
            (Some(DAY), DAY / 30, Some(Outcome::Fail)),
        ] {
            assert_eq!(judged(life, left), expected, "{life:?} {left}");
        }
        let listed = |left: i64, required| lists(Some(1_000_000_000 + left), required, now).outcome;
        assert_eq!(listed(4 * DAY, true), Outcome::Ok);
        assert_eq!((listed(2 * DAY, true), listed(-1, true)), (Outcome::Warn, Outcome::Fail));
        assert_eq!((listed(-1, false), lists(None, true, now).outcome), (Outcome::Warn, Outcome::Ok));
    }

    #[test]
    fn clocks_are_apart_beyond_what_a_late_look_shows() {
        let judged = |skew: Option<i64>| {
            let node = Node { name: "ct111".into(), ..Node::default() };
            let view = NodeView { skew_ms: skew, ..NodeView::of(node) };
            clock(&view, Duration::from_secs(30)).map(|finding| finding.outcome)
        };
        assert_eq!((judged(None), judged(Some(4_000)), judged(Some(-34_000))), (None, None, None));
        assert_eq!((judged(Some(6_000)), judged(Some(-36_000))), (Some(Outcome::Warn), Some(Outcome::Warn)));
        assert_eq!(
            (judged(Some(61_000)), judged(Some(i64::MIN))),
            (Some(Outcome::Fail), Some(Outcome::Fail))
        );
    }
}
