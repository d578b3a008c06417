//! How many connections the system lets this process have. Where it runs out of file descriptors nothing can be
//! accepted any more, not even from this host's own agent.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Each connection carried is two: this one and the one to the other side.
const PER_CONNECTION: u64 = 2;
/// For listeners, files, registryd and the runtime.
const RESERVED: u64 = 64;

/// Raises this process's limit on open files as far as it may, and returns how many connections each of the two
/// sides can have: `wanted`, or fewer with a word in the log.
pub fn carry(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    // Not raised is not fatal: what there is counts.
    let files = match raised {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let Some(files) = files else { return wanted };
    let possible =
        usize::try_from(files.saturating_sub(RESERVED) / (2 * PER_CONNECTION)).unwrap_or(usize::MAX);
    if possible >= wanted {
        return wanted;
    }
    let possible = possible.max(1);
    tracing::warn!(
        target: "Mesh",
        "this process may open {files} files, enough for {possible} connections a side, not {wanted} \
         (proxy.limits.max_connections); raise LimitNOFILE or ulimit -n"
    );
    possible
}
