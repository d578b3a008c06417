//! One log line for each accepted request, written when the last part of its answer has passed or was
//! given up. A record that exists cannot be forgotten: it is written on drop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{Method, Uri};
use mesh_shared::AgentName;
use mesh_shared::logging::Excerpt;

use crate::error::ProxyError;
use crate::http::body::SharedScanner;
use crate::inbound::delegation::DelegationScanner;
use crate::tls::verify::PeerIdentity;

/// A request of a peer, from its headers to the end of its answer.
pub struct AccessRecord {
    started: Instant,
    peer: Arc<PeerIdentity>,
    subject: Subject,
    status: Option<u16>,
    failure: Option<String>,
    broke_off: Option<String>,
}

enum Subject {
    Request { method: Method, uri: Uri },
    Delegation { to: String, scanner: SharedScanner, preview_chars: usize },
}

impl AccessRecord {
    /// Starts the record of any request.
    pub fn request(peer: Arc<PeerIdentity>, method: Method, uri: Uri) -> Self {
        Self::start(peer, Subject::Request { method, uri })
    }

    /// Starts the record of a task delegated to the agent `to`; its body must pass [`Self::scanner`].
    pub fn delegation(peer: Arc<PeerIdentity>, to: String, preview_chars: usize) -> Self {
        let scanner = Arc::new(Mutex::new(DelegationScanner::new(preview_chars)));
        Self::start(peer, Subject::Delegation { to, scanner, preview_chars })
    }

    fn start(peer: Arc<PeerIdentity>, subject: Subject) -> Self {
        Self { started: Instant::now(), peer, subject, status: None, failure: None, broke_off: None }
    }

    /// What must see the request's body, if anything.
    pub fn scanner(&self) -> Option<SharedScanner> {
        match &self.subject {
            Subject::Request { .. } => None,
            Subject::Delegation { scanner, .. } => Some(scanner.clone()),
        }
    }

    /// Notes the status of the answer.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// Notes that the answer is an error that this sidecar makes.
    pub fn failed(&mut self, error: &ProxyError) {
        self.failure = Some(format!("{}: {error}", error.parts().1));
    }

    /// Notes that the answer ended too early.
    pub fn broke_off(&mut self, error: &dyn std::error::Error) {
        self.broke_off = Some(error.to_string());
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        let peer = self.peer.name();
        let ms = self.started.elapsed().as_millis();
        let end = End {
            status: self.status,
            failure: self.failure.as_deref(),
            broke_off: self.broke_off.as_deref(),
        };
        match &self.subject {
            Subject::Request { method, uri } => {
                let path = Excerpt { text: uri.path(), max_chars: 200 };
                tracing::info!(target: "AgentChannel", "Request peer.cn={peer} {method} {path} {end} duration_ms={ms}");
            }
            Subject::Delegation { to, scanner, preview_chars } => {
                let found = scanner.lock().unwrap_or_else(PoisonError::into_inner);
                // Anything but a name could pass for another part of the line.
                let from = found.from_agent().filter(|from| from.parse::<AgentName>().is_ok());
                let from = from.unwrap_or("unknown");
                let text = if *preview_chars == 0 { "" } else { found.message().unwrap_or_default() };
                let task = Excerpt { text, max_chars: *preview_chars };
                let colon = if text.is_empty() { "" } else { ": " };
                tracing::info!(
                    target: "AgentChannel",
                    "Received mesh delegation peer.cn={peer} from {from} → {to}{colon}{task} {end} duration_ms={ms}"
                );
            }
        }
    }
}

/// How a request ended.
struct End<'a> {
    status: Option<u16>,
    failure: Option<&'a str>,
    broke_off: Option<&'a str>,
}

impl std::fmt::Display for End<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "status={status}")?,
            None => f.write_str("status=- ended=\"given up by the peer\"")?,
        }
        if let Some(failure) = self.failure {
            write!(f, " error={failure:?}")?;
        }
        match self.broke_off {
            Some(reason) => write!(f, " ended={reason:?}"),
            None => Ok(()),
        }
    }
}
