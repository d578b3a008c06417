//! Every error that a sidecar makes: whose fault it is, whether anything was sent, whether a repeat is safe. Pure.
//!
//! Errors of the called agent are not among them: they pass through untouched.

use std::error::Error;

use http::StatusCode;
use mesh_shared::{AgentName, NodeName, enrolment, live};

/// Any error.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What went wrong with one request. The text is for the person who reads the agent's log: what failed,
/// and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum ProxyError {
    // The request itself.
    #[error(
        "the request names no destination; use http://<node>.mesh/… or http://<agent>.agent.mesh/… through this \
         proxy, /nodes/<node>/…, /agents/<agent>/…, or the header x-mesh-node or x-mesh-agent. A program that uses this \
         sidecar as its http_proxy reaches servers of this host with no_proxy=localhost,127.0.0.1"
    )]
    NoDestination,
    #[error("{0}")]
    BadDestination(String),
    #[error(
        "{0} is not in the mesh; only <node>.mesh and <agent>.agent.mesh can be reached through this sidecar. A program \
         that uses it as its http_proxy names all other hosts in no_proxy, such as no_proxy=localhost,127.0.0.1"
    )]
    NotInMesh(String),
    #[error(
        "the request comes from a web page ({0}); pages may not use this node's identity. Programs should not send that \
         header; an Origin that one always sends can be named in proxy.outbound.allowed_origins"
    )]
    BrowserRequest(String),
    #[error("CONNECT is for programs of this host; a peer cannot open a tunnel here")]
    ConnectNotSupported,
    #[error("the request body is larger than {limit_bytes} bytes (proxy.limits.max_body_bytes)")]
    BodyTooLarge { limit_bytes: u64 },
    #[error("the request could not be understood: {0}")]
    BadRequest(String),
    #[error(
        "the request's headers are too large: together they have more bytes than proxy.limits.max_header_bytes, or there \
         are more than {most}"
    )]
    HeadersTooLarge { most: usize },
    #[error("the request's target is longer than 65,534 bytes")]
    UriTooLong,
    #[error("revocation lists may have at most {limit_bytes} bytes together")]
    ListsTooLarge { limit_bytes: usize },
    #[error("a request for the CA may have at most {limit_bytes} bytes")]
    CaBodyTooLarge { limit_bytes: usize },
    #[error("{path} takes {allowed} only")]
    MethodNotAllowed { path: &'static str, allowed: &'static str },
    #[error(
        "the request body arrived too slowly: it kept the agent waiting for {limit_ms} ms \
         (proxy.timeouts.body_ms, proxy.limits.min_body_bytes_per_second)"
    )]
    BodyTooSlow { limit_ms: u128 },
    #[error("the time that the request allows, {limit_ms} ms, is over; its work was cancelled")]
    DeadlineExceeded { limit_ms: u128, sent: Sent },

    // Limits.
    #[error("{peer} already has {most} requests in flight here (proxy.limits.max_requests_per_peer)")]
    TooManyRequests { peer: String, most: usize },
    #[error(
        "{peer} sends more than {most} requests a second (proxy.limits.max_requests_per_second_per_peer)"
    )]
    RateLimited { peer: String, most: u32 },
    #[error("{peer} sends revocation lists too often")]
    ListsTooOften { peer: String },
    #[error(
        "no slot at the agent behind this sidecar became free for this caller within {waited_ms} ms; there are {most}, of \
         which one caller gets at most seven eighths ({key})"
    )]
    AgentBusy { most: usize, waited_ms: u128, key: &'static str },

    // Who can be reached.
    #[error(
        "registryd was not reached since this sidecar started, and no saved roster was found, so no node is \
         known yet; is registryd running? ({0})"
    )]
    NoRoster(String),
    #[error("no node {0} is registered in the mesh; meshctl nodes lists those that are")]
    UnknownNode(NodeName),
    #[error("no node hosts an agent {0}; meshctl agents lists those that exist")]
    UnknownAgent(AgentName),
    #[error("node {0} is offline: nothing has been heard from it for longer than its stale threshold")]
    NodeOffline(NodeName),
    #[error("agent {agent} lives on {nodes}, and none of them accepts tasks at present")]
    AgentOffline { agent: AgentName, nodes: String },

    // The connection to the peer.
    #[error("no address is known for {node}.mesh: {reason}")]
    PeerUnresolved { node: NodeName, reason: String },
    #[error("cannot connect to {node}.mesh: {reason}")]
    PeerUnreachable { node: NodeName, reason: String },
    #[error(
        "{most} requests from this host to {node}.mesh are already in flight; no more are sent until some of them end"
    )]
    PeerBusy { node: NodeName, most: usize },
    #[error("{node}.mesh did not complete the connection within {limit_ms} ms ({addresses})")]
    PeerTimeout { node: NodeName, limit_ms: u128, addresses: String },
    #[error(
        "the server that answers for {node}.mesh presented a different identity: {reason}. Check what the name resolves to; \
         nothing was sent"
    )]
    PeerIdentityMismatch { node: NodeName, reason: String },
    #[error("the certificate of {node}.mesh does not verify: {reason}; nothing was sent")]
    PeerUntrusted { node: NodeName, reason: String },
    #[error("{node}.mesh refused this node's certificate: {reason}; see the WARN line in its sidecar's log")]
    PeerRefusedUs { node: NodeName, reason: String },
    #[error("the connection to {node}.mesh failed before the answer came: {reason}")]
    PeerFailed { node: NodeName, reason: String, sent: Sent },

    #[error(
        "agent {agent} is registered on {nodes}, but no certificate there says that it may be (mesh.agents: certified), so \
         nothing was sent. If it belongs there, on the CA's host, with all agents of the node: meshctl ca renew <node> --agents \
         {agent}, or meshctl invite <node> --agents {agent} if the node's key was made there"
    )]
    AgentNotCertified { agent: AgentName, nodes: String },

    // This host.
    #[error("{0}. Nothing was sent; replace its certificate and key, or remove both to call as the node")]
    IdentityUnusable(String),
    #[error("proxy.policy of this node does not allow peer {0} to connect")]
    PeerNotAllowed(String),
    #[error(
        "this request is not allowed by the node that answers ({by}); meshctl policy explain on that node says which rule decides"
    )]
    RequestNotAllowed { by: String },
    #[error(
        "peer {0} may not read this node's live view; to permit it, list it in proxy.live.peers of this node's configuration"
    )]
    LivePeerNotNamed(String),
    #[error(
        "the live view of another node can be read only through the socket of this sidecar (proxy.admin.socket): meshctl tap --node"
    )]
    LiveNotHere,
    #[error(
        "{most} programs already read this node's live view; stop one of them (meshctl top, tap or drain)"
    )]
    LiveFull { most: usize },
    #[error("{0}.mesh has no live view: its mesh-proxy is older, or another program answers there")]
    LiveUnknown(NodeName),
    #[error(
        "the agent behind this sidecar does not accept connections on {address}: {reason}; is it running?"
    )]
    BackendUnreachable { address: String, reason: String },
    #[error("the agent behind this sidecar ({address}) failed before it answered: {reason}")]
    BackendFailed { address: String, reason: String },
    #[error("registryd does not answer on {socket}: {reason}; is it running?")]
    RegistryUnavailable { socket: String, reason: String },
    #[error(
        "the mesh's CA does not run on this host; mesh.ca.node must name the node where `meshctl ca serve` runs"
    )]
    NoCaHere,
    #[error("the CA's process does not answer on {socket}: {reason}; is mesh-ca.service running?")]
    CaUnavailable { socket: String, reason: String },
}

/// How far a request got before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is certain that nobody processed any byte of it.
    Nothing,
    /// Whoever it was sent to may have begun to work on it.
    Perhaps,
}

/// Who has to do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The program or the peer that sent the request.
    Caller,
    /// This host: its sidecar, its registryd, or its limits.
    Here,
    /// The node that was called, or the way there.
    Peer,
    /// The agent behind this sidecar.
    Agent,
}

/// The codes of gRPC that errors of a sidecar have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // they are gRPC's
pub enum GrpcStatus {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Unavailable = 14,
}

/// What an error is, apart from its text.
#[derive(Debug)]
pub struct Kind {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable code, which several errors may share.
    pub code: &'static str,
    /// A title for people.
    pub title: &'static str,
    /// Who has to do something about it.
    pub fault: Fault,
    repeat: Repeat,
    grpc: GrpcStatus,
}

/// Whether the same request can be sent again without the work being done twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Repeat {
    /// It can: nothing of it was processed.
    Safe,
    /// It can where the error says that nothing was sent.
    IfNothingSent,
    /// It cannot: the agent, or registryd, had the connection and may have read the request; a body that was cut off may
    /// have been read up to there.
    Unsafe,
}

/// Makes [`ProxyError::kind`] of a row for each error: status, code, title, who has to act, whether a repeat is safe, and
/// what a gRPC client is told. An error without a row does not compile.
macro_rules! kinds {
    ($($error:ident => ($status:ident, $code:expr, $title:literal, $fault:ident, $repeat:ident, $grpc:ident),)+) => {
        #[allow(non_upper_case_globals)] // named as the errors are
        mod rows {
            use super::*;

            $(pub(super) const $error: Kind = Kind {
                status: StatusCode::$status,
                code: $code,
                title: $title,
                fault: Fault::$fault,
                repeat: Repeat::$repeat,
                grpc: GrpcStatus::$grpc,
            };)+
            #[cfg(test)]
            pub(super) const ALL: &[Kind] = &[$($error,)+];
        }

        impl ProxyError {
            /// What it is, apart from its text.
            pub fn kind(&self) -> &'static Kind {
                match self {
                    $(Self::$error { .. } => &rows::$error,)+
                }
            }
        }
    };
}

kinds! {
    // The request itself.
    NoDestination => (BAD_REQUEST, "no_destination", "No destination", Caller, Safe, InvalidArgument),
    BadDestination =>
        (BAD_REQUEST, "bad_destination", "Destination cannot be read", Caller, Safe, InvalidArgument),
    NotInMesh => (FORBIDDEN, "not_in_mesh", "Not in the mesh", Caller, Safe, PermissionDenied),
    BrowserRequest => (FORBIDDEN, "browser_request", "Web pages are refused", Caller, Safe, PermissionDenied),
    ConnectNotSupported =>
        (METHOD_NOT_ALLOWED, "connect_not_supported", "CONNECT is not supported", Caller, Safe, Unimplemented),
    BodyTooLarge => (PAYLOAD_TOO_LARGE, "body_too_large", "Body too large", Caller, Unsafe, ResourceExhausted),
    BadRequest => (BAD_REQUEST, "bad_request", "Bad request", Caller, Safe, InvalidArgument),
    HeadersTooLarge =>
        (REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "Headers too large", Caller, Safe, InvalidArgument),
    UriTooLong => (URI_TOO_LONG, "uri_too_long", "Target too long", Caller, Safe, InvalidArgument),
    ListsTooLarge => (PAYLOAD_TOO_LARGE, "body_too_large", "Body too large", Caller, Safe, ResourceExhausted),
    CaBodyTooLarge => (PAYLOAD_TOO_LARGE, "body_too_large", "Body too large", Caller, Safe, ResourceExhausted),
    MethodNotAllowed =>
        (METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed", Caller, Safe, Unimplemented),
    BodyTooSlow => (REQUEST_TIMEOUT, "body_too_slow", "Body too slow", Caller, Unsafe, DeadlineExceeded),
    DeadlineExceeded =>
        (GATEWAY_TIMEOUT, "deadline_exceeded", "Deadline exceeded", Agent, IfNothingSent, DeadlineExceeded),

    // Limits.
    TooManyRequests =>
        (TOO_MANY_REQUESTS, "too_many_requests", "Too many requests at once", Caller, Safe, ResourceExhausted),
    RateLimited => (TOO_MANY_REQUESTS, "rate_limited", "Too many requests", Caller, Safe, ResourceExhausted),
    ListsTooOften => (TOO_MANY_REQUESTS, "rate_limited", "Too many requests", Caller, Safe, ResourceExhausted),
    AgentBusy => (SERVICE_UNAVAILABLE, "agent_busy", "Agent is busy", Agent, Safe, Unavailable),

    // Who can be reached.
    NoRoster => (SERVICE_UNAVAILABLE, "no_roster", "No roster yet", Here, Safe, Unavailable),
    UnknownNode => (NOT_FOUND, "unknown_node", "Unknown node", Caller, Safe, Unavailable),
    UnknownAgent => (NOT_FOUND, "unknown_agent", "Unknown agent", Caller, Safe, Unavailable),
    NodeOffline => (SERVICE_UNAVAILABLE, "node_offline", "Node is offline", Peer, Safe, Unavailable),
    AgentOffline => (SERVICE_UNAVAILABLE, "agent_offline", "Agent is offline", Peer, Safe, Unavailable),

    // The connection to the peer.
    PeerUnresolved => (BAD_GATEWAY, "peer_unresolved", "Peer has no address", Peer, Safe, Unavailable),
    PeerUnreachable => (BAD_GATEWAY, "peer_unreachable", "Peer is unreachable", Peer, Safe, Unavailable),
    PeerBusy => (SERVICE_UNAVAILABLE, "peer_busy", "Peer is busy", Here, Safe, Unavailable),
    PeerTimeout => (GATEWAY_TIMEOUT, "peer_timeout", "Peer did not answer in time", Peer, Safe, Unavailable),
    PeerIdentityMismatch =>
        (BAD_GATEWAY, "peer_identity_mismatch", "Peer has a different identity", Peer, Safe, Unavailable),
    PeerUntrusted => (BAD_GATEWAY, "peer_untrusted", "Peer is not trusted", Peer, Safe, Unavailable),
    PeerRefusedUs => (BAD_GATEWAY, "peer_refused_us", "Peer refused this node", Here, Safe, Unavailable),
    PeerFailed => (BAD_GATEWAY, "peer_failed", "Connection to peer failed", Peer, IfNothingSent, Unavailable),
    AgentNotCertified => (BAD_GATEWAY, "agent_not_certified", "Agent is not certified", Peer, Safe, Unavailable),

    // This host.
    IdentityUnusable =>
        (SERVICE_UNAVAILABLE, "identity_unusable", "Identity cannot be used", Here, Safe, Unavailable),
    PeerNotAllowed => (FORBIDDEN, "peer_not_allowed", "Peer is not allowed", Caller, Safe, PermissionDenied),
    RequestNotAllowed =>
        (FORBIDDEN, "request_not_allowed", "Request is not allowed", Caller, Safe, PermissionDenied),
    LivePeerNotNamed =>
        (FORBIDDEN, live::NOT_PERMITTED, "Live view is not permitted", Caller, Safe, PermissionDenied),
    LiveNotHere => (FORBIDDEN, live::NOT_PERMITTED, "Live view is not permitted", Caller, Safe, PermissionDenied),
    LiveFull => (SERVICE_UNAVAILABLE, live::TOO_MANY_READERS, "Too many readers", Caller, Safe, ResourceExhausted),
    LiveUnknown => (BAD_GATEWAY, live::UNSUPPORTED, "No live view", Peer, Safe, Unimplemented),
    BackendUnreachable => (BAD_GATEWAY, "backend_unreachable", "Agent is unreachable", Agent, Safe, Unavailable),
    BackendFailed => (BAD_GATEWAY, "backend_failed", "Agent failed", Agent, Unsafe, Unavailable),
    RegistryUnavailable =>
        (SERVICE_UNAVAILABLE, "registry_unavailable", "registryd is unavailable", Here, Unsafe, Unavailable),
    NoCaHere => (NOT_FOUND, "no_ca_here", "No CA here", Caller, Safe, Unavailable),
    CaUnavailable =>
        (SERVICE_UNAVAILABLE, enrolment::CA_UNAVAILABLE, "CA is unavailable", Here, Unsafe, Unavailable),
}

impl ProxyError {
    /// Whether the same request can be sent again without the work being done twice: nothing of it was processed.
    pub fn repeat_is_safe(&self) -> bool {
        match (self.kind().repeat, self) {
            (Repeat::Safe, _) => true,
            (Repeat::IfNothingSent, Self::PeerFailed { sent, .. } | Self::DeadlineExceeded { sent, .. }) => {
                *sent == Sent::Nothing
            }
            (Repeat::IfNothingSent | Repeat::Unsafe, _) => false,
        }
    }

    /// What a gRPC client is told (gRPC, "Status codes and their use").
    ///
    /// Its library repeats what is UNAVAILABLE by itself, so that is only what can be repeated without the work being
    /// done twice. To it belongs a name that nobody has: gRPC's own resolvers say so of a name that they do not find,
    /// and gRPC keeps NOT_FOUND for what the server itself was asked for (in A2A, a task that does not exist).
    pub fn grpc_status(&self) -> GrpcStatus {
        match self.kind().grpc {
            GrpcStatus::Unavailable if !self.repeat_is_safe() => GrpcStatus::Unknown,
            status => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_grpc_client_repeats_by_itself_only_what_is_safe() {
        let node: NodeName = "ct111".parse().unwrap();
        let failed = |sent| ProxyError::PeerFailed { node: node.clone(), reason: String::new(), sent };
        let agent = ProxyError::BackendFailed { address: String::new(), reason: String::new() };
        assert_eq!(failed(Sent::Nothing).grpc_status(), GrpcStatus::Unavailable);
        assert_eq!(failed(Sent::Perhaps).grpc_status(), GrpcStatus::Unknown);
        assert_eq!(agent.grpc_status(), GrpcStatus::Unknown);
        assert_eq!(ProxyError::UnknownNode(node).grpc_status(), GrpcStatus::Unavailable);
    }

    /// deploy/docs/errors.md has a row for each code, and no other.
    #[test]
    fn every_code_is_documented_as_it_is() {
        let mut rows: BTreeMap<&str, (StatusCode, Repeat, Fault)> = BTreeMap::new();
        for kind in rows::ALL {
            let (status, repeat, fault) =
                rows.entry(kind.code).or_insert((kind.status, kind.repeat, kind.fault));
            assert_eq!((*status, *fault), (kind.status, kind.fault), "{}", kind.code);
            // Of errors that share a code, the page has the one with which most is lost.
            *repeat = (*repeat).max(kind.repeat);
        }
        let mut rows: Vec<[String; 4]> = rows
            .into_iter()
            .map(|(code, (status, repeat, fault))| {
                let safe = match repeat {
                    Repeat::Safe => "yes",
                    Repeat::IfNothingSent => "depends",
                    Repeat::Unsafe => "no",
                };
                let fault = match fault {
                    Fault::Caller => "caller",
                    Fault::Here => "here",
                    Fault::Peer => "peer",
                    Fault::Agent => "agent",
                };
                [format!("`{code}`"), status.as_u16().to_string(), safe.into(), fault.into()]
            })
            .collect();
        rows.sort();
        let page = include_str!("../../deploy/docs/errors.md");
        let section = page.split("\n## ").find(|section| section.starts_with("Made by a sidecar")).unwrap();
        let mut documented: Vec<[String; 4]> = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let mut cells = line.split(" | ").map(|cell| cell.trim_start_matches("| ").to_owned());
                std::array::from_fn(|_| cells.next().unwrap())
            })
            .collect();
        documented.sort();
        assert_eq!(documented, rows);
    }
}
