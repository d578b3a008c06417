//! Requests that the sidecar itself sends to peers, with the same connections, checks and retries as those of its agent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use mesh_shared::NodeName;
use mesh_shared::root_cause;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::http::body::RequestBody;
use crate::upstream::{Target, Upstream};

/// How long a peer may take for a whole answer.
const ANSWER: Duration = Duration::from_secs(15);

/// The way to the nodes, that of the agent's requests on the same thread.
pub struct Requests {
    upstream: Arc<Upstream>,
}

/// A whole answer.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody could be asked.
    #[error(transparent)]
    Unsent(ProxyError),
    /// The answer broke off, or is larger than it may be.
    #[error("the answer cannot be read: {0}")]
    Unread(String),
    /// It did not come in time.
    #[error("no answer within {} s", ANSWER.as_secs())]
    Late,
}

impl AskError {
    /// Whether one of the two sides does not accept the other one's certificate.
    pub fn is_distrust(&self) -> bool {
        matches!(
            self,
            Self::Unsent(
                ProxyError::PeerUntrusted { .. }
                    | ProxyError::PeerRefusedUs { .. }
                    | ProxyError::PeerIdentityMismatch { .. }
            )
        )
    }
}

impl Requests {
    /// Nothing is sent yet.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream }
    }

    /// Sends a request to a node and reads its answer, of at most `most` bytes.
    ///
    /// # Errors
    /// Nobody answers, or more than that.
    pub async fn ask(
        &self,
        node: &NodeName,
        request: Request<Bytes>,
        most: usize,
    ) -> Result<Answer, AskError> {
        let target = Target::own_path(node.clone());
        let exchange = async {
            let sent = self.upstream.send(target, request.map(RequestBody::own), |_| {}).await;
            let delivered = sent.map_err(AskError::Unsent)?;
            let (head, body) = delivered.response.into_parts();
            let body = Limited::new(body, most).collect().await;
            let body = body.map_err(|error| AskError::Unread(root_cause(&*error).to_string()))?.to_bytes();
            drop(delivered.slot);
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        timeout(ANSWER, exchange).await.unwrap_or(Err(AskError::Late))
    }
}
