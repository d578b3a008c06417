//! The values of the labels whose values are fixed.

/// Defines a label's values: their names in the text, and their number.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$each])* $variant,)+ }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value as it is in the text.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// Its place in a table with an entry for each value.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Which way requests go, as seen from this host's agent.
    Direction {
        /// Peers call the agent.
        Inbound = "inbound",
        /// The agent, or another local program, calls peers.
        Outbound = "outbound",
    }
}

label! {
    /// Which of the two connections of a request.
    Side {
        /// The one that the request came on: a peer's, or a local program's.
        Downstream = "downstream",
        /// The one that it is sent on: to the agent, or to a peer.
        Upstream = "upstream",
    }
}

label! {
    /// What a status code begins with.
    CodeClass {
        /// 101, a protocol upgrade.
        Informational = "1xx",
        /// 200 to 299.
        Success = "2xx",
        /// 300 to 399.
        Redirection = "3xx",
        /// 400 to 499.
        ClientError = "4xx",
        /// 500 and above.
        ServerError = "5xx",
        /// No answer began.
        None = "none",
    }
}

impl CodeClass {
    /// The class of an answer's status; `None`: no answer began.
    pub const fn of(status: Option<u16>) -> Self {
        match status {
            None => Self::None,
            Some(..=199) => Self::Informational,
            Some(200..=299) => Self::Success,
            Some(300..=399) => Self::Redirection,
            Some(400..=499) => Self::ClientError,
            Some(500..) => Self::ServerError,
        }
    }
}

label! {
    /// How an exchange ended.
    Outcome {
        /// The whole answer of the other side was passed on.
        Complete = "complete",
        /// The answer is an error that this sidecar made.
        Error = "error",
        /// The caller went away before the answer was complete.
        CutByCaller = "cut_by_caller",
        /// The side that was called broke off its answer.
        CutByUpstream = "cut_by_upstream",
        /// This sidecar broke the answer off: a deadline, a limit, lost trust, or its own end.
        CutBySidecar = "cut_by_sidecar",
    }
}

label! {
    /// Whose bytes.
    Way {
        /// Bodies of requests, read from the caller.
        In = "in",
        /// Bodies of answers, passed to the caller.
        Out = "out",
    }
}

label! {
    /// Whether a handshake resumed a session.
    Resumption {
        /// All certificates were shown.
        Full = "full",
        /// An earlier session was resumed.
        Resumed = "resumed",
    }
}

impl Resumption {
    /// Of a connection whose handshake is complete.
    pub fn of(kind: Option<rustls::HandshakeKind>) -> Self {
        match kind {
            Some(rustls::HandshakeKind::Resumed) => Self::Resumed,
            _ => Self::Full,
        }
    }
}

label! {
    /// How a revocation list came here.
    ListWay {
        /// A peer sent it.
        Pushed = "pushed",
        /// A peer was asked for it.
        Pulled = "pulled",
        /// The CA was asked for it.
        Ca = "ca",
    }
}

label! {
    /// What became of a revocation list that came from elsewhere.
    ListVerdict {
        /// It is in use.
        Taken = "taken",
        /// It was known.
        Known = "known",
        /// A newer one of its issuer is known.
        Older = "older",
        /// It says that it was made in the future.
        Coming = "coming",
        /// Its issuer is not in the trust bundle.
        UnknownIssuer = "unknown_issuer",
        /// Its issuer did not sign it, or it has a form that no verifier understands.
        Forged = "forged",
        /// It cannot be read.
        Unreadable = "unreadable",
        /// The peer sends too many.
        Limited = "limited",
    }
}

label! {
    /// How an attempt to renew the certificate ended.
    Renewal {
        /// The new certificate is in the files.
        Renewed = "renewed",
        /// The CA refuses it.
        Refused = "refused",
        /// The CA asks to wait.
        TooSoon = "too_soon",
        /// The CA's process is away, or cannot sign now.
        Unavailable = "unavailable",
        /// The CA's node cannot be reached.
        Unreachable = "unreachable",
        /// What the CA answered is not the certificate that was asked for.
        Invalid = "invalid",
        /// The CA's node did not accept the new certificate.
        NotAccepted = "not_accepted",
        /// The files cannot be written.
        Files = "files",
    }
}

label! {
    /// Why a TLS handshake failed.
    HandshakeFailure {
        /// It took longer than `proxy.timeouts.handshake_ms`.
        Timeout = "timeout",
        /// The connection ended in its middle.
        Closed = "closed",
        /// What came is not TLS.
        NotTls = "not_tls",
        /// No common version, cipher or protocol.
        Incompatible = "incompatible",
        /// The client presented no certificate.
        NoCertificate = "no_certificate",
        /// The certificate does not chain to the mesh's CA.
        UnknownIssuer = "unknown_issuer",
        /// The certificate has expired or is not valid yet.
        OutsideValidity = "outside_validity",
        /// The certificate is revoked.
        Revoked = "revoked",
        /// A revocation list is missing or has expired.
        RevocationList = "revocation_list",
        /// The certificate names somebody else than was dialled.
        WrongName = "wrong_name",
        /// The certificate is unusable in another way.
        BadCertificate = "bad_certificate",
        /// The peer refused this node's certificate or offer.
        RefusedByPeer = "refused_by_peer",
        /// Too many handshakes or connections are under way.
        Limit = "limit",
        /// The dialled address takes no connection.
        Unreachable = "unreachable",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// What bounds something that others can use up; named by its configuration key below `proxy`.
    Limit {
        /// Connections of peers.
        Connections = "limits.max_connections",
        /// Connections of local programs, as many as those of peers.
        LocalConnections = "limits.max_connections (local)",
        /// Connections of one peer.
        ConnectionsPerPeer = "limits.max_connections_per_peer",
        /// Handshakes under way.
        Handshakes = "limits.max_handshakes",
        /// Handshakes under way from one address.
        HandshakesPerAddress = "limits.max_handshakes_per_address",
        /// Requests of one peer at once.
        RequestsPerPeer = "limits.max_requests_per_peer",
        /// Requests of one peer in a second.
        RequestRatePerPeer = "limits.max_requests_per_second_per_peer",
        /// Requests that the agent has at once.
        BackendRequests = "backend.max_requests",
        /// Requests that wait for the agent.
        BackendQueue = "backend.max_queue",
        /// Event streams and WebSockets to the agent.
        BackendEventStreams = "backend.max_event_streams",
        /// Requests to one node at once.
        RequestsPerNode = "outbound.max_requests_per_node",
        /// Connections to one node that are being made.
        Dials = "dials",
    }
}

label! {
    /// Why a request was sent again: in each case nothing of it had been processed.
    RetryReason {
        /// No connection to the endpoint could be made.
        Connect = "connect",
        /// The endpoint's TLS handshake failed.
        Handshake = "handshake",
        /// REFUSED_STREAM.
        RefusedStream = "refused_stream",
        /// GOAWAY below the request's stream.
        GoAway = "goaway",
        /// A pooled connection had ended before it took the request.
        StaleConnection = "stale_connection",
        /// The endpoint said that it is full.
        Busy = "busy",
        /// The endpoint's sidecar said that its agent does not accept connections.
        AgentAway = "agent_away",
    }
}

label! {
    /// Why a request that could have been sent again was not.
    RetryRefusal {
        /// The retry budget was used up.
        Budget = "budget",
        /// `proxy.outbound.max_attempts` was reached.
        Attempts = "attempts",
        /// The body could not be sent again.
        Body = "body",
        /// No other endpoint was left.
        NoEndpoint = "no_endpoint",
    }
}

label! {
    /// What became of a request that rules do not simply allow.
    PolicyVerdict {
        /// It was refused.
        Refused = "refused",
        /// It passed, because the policy is in audit mode.
        WouldRefuse = "would_refuse",
        /// A rule lets it pass and asks for a line in the log.
        Audited = "audited",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_fall_into_classes() {
        let class = |status| CodeClass::of(status).as_str();
        assert_eq!([Some(101), Some(200), Some(302)].map(class), ["1xx", "2xx", "3xx"]);
        assert_eq!([Some(429), Some(503), Some(999), None].map(class), ["4xx", "5xx", "5xx", "none"]);
    }

    #[test]
    fn each_value_stands_where_its_number_says() {
        for (index, limit) in Limit::ALL.iter().enumerate() {
            assert_eq!(limit.index(), index);
        }
    }
}
