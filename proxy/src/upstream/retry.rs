//! When a request that failed may be sent again. Pure: takes an error and the time, and returns a verdict.
//!
//! It may only where it is certain that nobody processed any byte of it:
//! - no connection came about;
//! - the peer reset its stream with REFUSED_STREAM (RFC 9113, section 8.7);
//! - the peer ended the connection with a GOAWAY of NO_ERROR whose last stream is an earlier one (section 6.8). The h2
//!   crate gives such an error to no other stream: those that the peer took fail with an I/O error;
//! - hyper gave the request back, because the connection had ended before it began to write it;
//! - the peer's sidecar answered that its agent accepts no connection (`http/problem.rs`).

use std::error::Error;
use std::time::Instant;

use h2::Reason;

use crate::error::{ProxyError, Sent};
use crate::metrics::RetryReason;

/// What proves that nobody processed any byte of a request whose sending failed with `error`; `None`: nothing does.
pub fn unprocessed(error: &(dyn Error + 'static)) -> Option<RetryReason> {
    let mut cause = Some(error);
    while let Some(each) = cause {
        if let Some(h2) = each.downcast_ref::<h2::Error>() {
            return match h2.reason() {
                Some(Reason::REFUSED_STREAM) if h2.is_reset() && h2.is_remote() => {
                    Some(RetryReason::RefusedStream)
                }
                Some(Reason::NO_ERROR) if h2.is_go_away() && h2.is_remote() => Some(RetryReason::GoAway),
                _ => None,
            };
        }
        cause = each.source();
    }
    None
}

/// What a retry counts as, where no connection came about.
pub fn reason(error: &ProxyError) -> RetryReason {
    match error {
        ProxyError::PeerBusy { .. } => RetryReason::Busy,
        ProxyError::PeerIdentityMismatch { .. } | ProxyError::PeerUntrusted { .. } => RetryReason::Handshake,
        _ => RetryReason::Connect,
    }
}

/// Where a request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nowhere: it may have been processed, or it would fail everywhere.
    Nowhere,
    /// To another node.
    Elsewhere,
    /// To another node, or else to the same one.
    Anywhere,
}

/// Where a request that failed with `error` may be sent again.
pub fn again(error: &ProxyError) -> Again {
    match error {
        ProxyError::PeerFailed { sent: Sent::Nothing, .. } => Again::Anywhere,
        ProxyError::PeerUnreachable { .. }
        | ProxyError::PeerUnresolved { .. }
        | ProxyError::PeerTimeout { .. }
        | ProxyError::PeerIdentityMismatch { .. }
        | ProxyError::PeerUntrusted { .. }
        | ProxyError::PeerBusy { .. } => Again::Elsewhere,
        // The fault is in this node's certificate; the next peer would refuse it as well.
        _ => Again::Nowhere,
    }
}

/// Requests add this much to the budget.
const SHARE: f64 = 0.2;
/// So does each second.
const PER_SECOND: f64 = 3.0;
/// What is saved at most: nodes fail with all that is under way to them at once.
const MOST: f64 = 100.0;

/// How many requests may be sent again: a fifth of all, and a few each second. Without it, requests that are sent again
/// would be most of the load on a mesh that is failing.
#[derive(Debug)]
pub struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { left: MOST, at: now }
    }

    /// Counts a request.
    pub fn deposit(&mut self) {
        self.left = (self.left + SHARE).min(MOST);
    }

    /// Whether one more may be sent again; it is counted.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.at, now));
        self.left = (self.left + PER_SECOND * passed.as_secs_f64()).min(MOST);
        let granted = self.left >= 1.0;
        if granted {
            self.left -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_budget_is_a_fifth_of_the_requests_and_three_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let granted = |budget: &mut Budget, now| (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(granted(&mut budget, start), 100);
        assert_eq!(granted(&mut budget, start), 0);
        for _ in 0..251 {
            budget.deposit();
        }
        assert_eq!(granted(&mut budget, start), 50);
        assert_eq!(granted(&mut budget, start + Duration::from_secs(4)), 12);
        assert_eq!(granted(&mut budget, start + Duration::from_secs(4000)), 100);
    }

    #[test]
    fn only_what_is_certain_counts_as_not_sent() {
        // What the h2 crate makes itself is not a word of the peer's.
        for reason in [Reason::REFUSED_STREAM, Reason::NO_ERROR, Reason::CANCEL] {
            assert_eq!(unprocessed(&h2::Error::from(reason)), None);
        }
        assert_eq!(unprocessed(&std::io::Error::other("reset")), None);
    }

    /// How a request fails whose peer answers it with these frames and then closes the connection.
    async fn failed_by(frames: &[u8]) -> Option<RetryReason> {
        use bytes::Bytes;
        use http_body_util::Full;
        use hyper_util::rt::{TokioExecutor, TokioIo};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(ours));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("https://ct111.mesh/").body(Full::new(Bytes::from_static(b"{}")));
        let answer = tokio::spawn(async move { sender.send_request(request.unwrap()).await });
        // Our SETTINGS are empty.
        theirs.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"{}") {
            theirs.read_buf(&mut read).await.unwrap();
        }
        theirs.write_all(frames).await.unwrap();
        drop(theirs);
        unprocessed(&answer.await.unwrap().unwrap_err())
    }

    #[tokio::test]
    async fn what_a_peer_says_it_has_not_processed() {
        let reset = |code| [&b"\0\0\x04\x03\0\0\0\0\x01\0\0\0"[..], &[code]].concat();
        assert_eq!(failed_by(&reset(7)).await, Some(RetryReason::RefusedStream));
        for code in [0, 2, 8, 11] {
            assert_eq!(failed_by(&reset(code)).await, None, "code {code}");
        }
        let go_away =
            |last, code| [&b"\0\0\x08\x07\0\0\0\0\0\0\0\0"[..], &[last], &b"\0\0\0"[..], &[code]].concat();
        assert_eq!(failed_by(&go_away(0, 0)).await, Some(RetryReason::GoAway));
        assert_eq!(failed_by(&go_away(1, 0)).await, None, "it was taken");
        assert_eq!(failed_by(&go_away(0, 11)).await, None);
        assert_eq!(failed_by(&[]).await, None);
    }

    #[test]
    fn a_fault_of_this_node_is_not_tried_on_others() {
        let node: mesh_shared::NodeName = "ct111".parse().unwrap();
        let reason = String::new;
        let failed = |sent| ProxyError::PeerFailed { node: node.clone(), reason: reason(), sent };
        assert_eq!(again(&failed(Sent::Nothing)), Again::Anywhere);
        assert_eq!(again(&failed(Sent::Perhaps)), Again::Nowhere);
        assert_eq!(
            again(&ProxyError::PeerUnreachable { node: node.clone(), reason: reason() }),
            Again::Elsewhere
        );
        assert_eq!(
            again(&ProxyError::PeerRefusedUs { node: node.clone(), reason: reason() }),
            Again::Nowhere
        );
    }
}
