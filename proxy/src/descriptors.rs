//! The limit of open files of this process. Without free file descriptors nothing can be accepted, not even from this host's
//! own agent, so the number of connections is limited to what the file descriptors allow.

use mesh_shared::config::Proxy;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::inbound::backend::{connections, shared};

/// A connection of a peer is one, what it asks of the agent is counted apart; a connection of this host's programs and
/// the one to the peer that it uses are two.
const PER_CONNECTION: usize = 3;
/// For listeners, files, registryd and the runtime.
const RESERVED: usize = 64;

/// Raises this process's limit on open files as far as it may. Where they do not suffice for what `proxy` allows, it
/// allows less from now on, with a word in the log.
pub fn fit(proxy: &mut Proxy) {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    // Not raised is not fatal: what there is counts.
    let files = match raised {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let Some(files) = files.and_then(|files| usize::try_from(files).ok()) else { return };
    let wanted = proxy.limits.max_connections;
    if !fit_into(proxy, files) {
        return;
    }
    let (connections, agent) =
        (proxy.limits.max_connections, proxy.backend.max_requests + proxy.backend.max_event_streams);
    let agent = agent * proxy.backend.addresses().len();
    tracing::warn!(
        target: "Mesh",
        "this process may open {files} files, enough for {connections} connections a side, not {wanted} \
         (proxy.limits.max_connections), and {agent} to agents; raise LimitNOFILE or ulimit -n"
    );
}

/// Reduces what `proxy` allows to what so many files suffice for. Whether it had to. Pure.
fn fit_into(proxy: &mut Proxy, files: usize) -> bool {
    let servers = proxy.backend.addresses().len();
    let (limits, backend) = (&mut proxy.limits, &mut proxy.backend);
    let idle = (connections::MAX_IDLE_CONNECTIONS + shared::MAX_CONNECTIONS) * proxy.threads * servers;
    let for_agent = (backend.max_requests + backend.max_event_streams) * servers + idle;
    let available = files.saturating_sub(RESERVED);
    if for_agent + limits.max_handshakes + PER_CONNECTION * limits.max_connections <= available {
        return false;
    }
    // A third for agents at most, half of it for requests, as long as there is enough for one of each.
    let share = available / 3;
    if for_agent > share {
        let share = share.saturating_sub(idle.min(share / 3)) / servers;
        backend.max_requests = backend.max_requests.min(share / 2).max(1);
        backend.max_event_streams = backend.max_event_streams.min(share / 2);
    }
    let rest = available - share.min(for_agent);
    limits.max_handshakes = limits.max_handshakes.min(rest / 12).max(1);
    limits.max_handshakes_per_address =
        limits.max_handshakes_per_address.min(limits.max_handshakes.div_ceil(2));
    let connections = (rest.saturating_sub(limits.max_handshakes) / PER_CONNECTION).max(1);
    if connections < limits.max_connections {
        let share = limits.max_connections_per_peer * connections / limits.max_connections;
        limits.max_connections = connections;
        limits.max_connections_per_peer = share.max(1);
    }
    true
}

#[cfg(test)]
mod tests {
    use mesh_shared::config::Config;

    use super::*;

    fn proxy() -> Proxy {
        let yaml = "mesh: {enabled: true, node_name: ct110, tls: {ca_path: a, cert_path: b, key_path: c}}";
        Config::parse(yaml).unwrap().proxy
    }

    fn files_of(proxy: &Proxy) -> usize {
        let (limits, backend) = (&proxy.limits, &proxy.backend);
        RESERVED
            + backend.max_requests
            + backend.max_event_streams
            + limits.max_handshakes
            + PER_CONNECTION * limits.max_connections
    }

    #[test]
    fn what_is_allowed_fits_into_the_files_that_there_are() {
        let mut roomy = proxy();
        assert!(!fit_into(&mut roomy, 1 << 19));
        assert_eq!(roomy.limits.max_connections, proxy().limits.max_connections);
        for files in [80, 256, 1_024, 4_096, 16_384] {
            let mut tight = proxy();
            assert!(fit_into(&mut tight, files), "{files}");
            let needed = files_of(&tight);
            assert!(needed <= files, "{needed} of {files}");
            assert!(needed > files / 2, "{needed} of {files}");
            assert!(tight.limits.max_connections_per_peer <= tight.limits.max_connections.div_ceil(2));
            assert!(tight.limits.max_handshakes_per_address <= tight.limits.max_handshakes);
        }
    }
}
