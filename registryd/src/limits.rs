//! How many descriptors this process may have, and who may use how many of them.
//!
//! Programs of this host and peers can open as many connections as they like; storage, the sidecar and the questions
//! to peers must not run out of descriptors for it.

use nix::unistd::User;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for storage, the sidecar, timers, and questions to peers.
const RESERVE: usize = 56;
/// More than any registryd needs.
const MOST: u64 = 16_384;

/// Connections that each kind of listener serves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// On the socket.
    pub socket: usize,
    /// Of those, with an answer that does not end soon.
    pub streams: usize,
    /// DNS over TCP.
    pub dns: usize,
    /// For metrics.
    pub metrics: usize,
}

impl Limits {
    /// Those of this process, after its limit was raised as far as it may be.
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let most = limit.maximum.unwrap_or(MOST).min(MOST);
        if limit.current.is_some_and(|current| current < most) {
            // Refused, the lower limit counts.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
        }
        Self::within(getrlimit(Resource::Nofile).current.unwrap_or(MOST).min(MOST) as usize)
    }

    fn within(descriptors: usize) -> Self {
        let free = descriptors.saturating_sub(RESERVE).max(8);
        let socket = (free / 2).clamp(6, 512);
        Self {
            socket,
            streams: (socket / 2).min(256),
            dns: (free / 4).clamp(2, 64),
            metrics: (free / 16).clamp(1, 8),
        }
    }
}

/// The number of a user, by name or as a number; `None`: there is no such user here.
pub fn user_id(user: &str) -> Option<u32> {
    user.parse().ok().or_else(|| Some(User::from_name(user).ok()??.uid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_leave_enough_for_the_rest() {
        for descriptors in [64, 128, 1024, 16_384] {
            let limits = Limits::within(descriptors);
            let all = limits.socket + limits.dns + limits.metrics;
            assert!(
                all + 40 <= descriptors && limits.streams <= limits.socket / 2,
                "{descriptors}: {limits:?}"
            );
        }
        assert_eq!(Limits::within(128).socket, 36);
    }

    #[test]
    fn users_are_known_by_name_and_number() {
        assert_eq!((user_id("root"), user_id("4711"), user_id("no:such")), (Some(0), Some(4711), None));
    }
}
