//! One worker's HTTP/2 connections to a server, with prior knowledge.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_shared::config::{self, Limits};
use mesh_shared::root_cause;
use tokio::time::timeout;

use crate::error::ProxyError;
use crate::http::h2::client::{self, Sender, Unsettled};
use crate::http::h2::shared::{self, Dial, Dialled, Shared, Taken};
use crate::inbound::backend::dial::{CONNECT, Dialer};
use crate::io::first_bytes::FirstBytes;
use crate::io::link::{Link, Linked};
use crate::io::plain::Plain;
use crate::metrics::Direction;

/// Most connections to a server.
pub const MAX_CONNECTIONS: usize = shared::CONNECTIONS;
/// How long a connection is kept that no request uses.
const IDLE: Duration = Duration::from_secs(5);

/// A request's place on a connection, given back on drop.
pub type StreamSlot = shared::StreamSlot<Backend>;

/// The connections to one address.
pub struct SharedConnections {
    shared: Arc<Shared<Backend>>,
    /// How long a request waits for room.
    patience: Duration,
}

/// How they are made.
pub struct Backend {
    dialer: Arc<Dialer>,
    http2: h2::client::Builder,
}

/// Why there is no connection to send a request on. Nothing was sent.
#[derive(Debug, Clone)]
pub enum DialError {
    /// Nobody listens.
    Unreachable(String),
    /// Somebody does, and does not speak HTTP/2, or not in time.
    Unsettled(String),
    /// All connections carry as much as the server allows, this much in all.
    Busy(usize),
}

impl SharedConnections {
    /// None yet.
    pub fn new(dialer: Arc<Dialer>, backend: &config::Backend, limits: &Limits) -> Self {
        let most = backend.max_requests + backend.max_event_streams;
        let most_streams = most.div_ceil(MAX_CONNECTIONS).max(shared::STREAMS);
        // No pings: they would end the requests of an agent that thinks for minutes and answers nothing meanwhile.
        let http2 = client::builder(most_streams, limits);
        // How much there may be in all, the agent's slots say.
        let shared = Arc::new(Shared::new(Arc::new(Backend { dialer, http2 }), usize::MAX, IDLE));
        Self { shared, patience: CONNECT * 2 + backend.queue }
    }

    /// How long a request waits for room.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// A connection with room for one more request; waits until there is one.
    ///
    /// # Errors
    /// None can be made, or none has room in time. Nothing was sent.
    pub async fn stream(&self) -> Result<(Sender, Arc<Link>, StreamSlot), DialError> {
        let taken = match self.shared.try_take(false) {
            Some(taken) => taken,
            None => timeout(self.patience, self.shared.wait(false))
                .await
                .unwrap_or_else(|_| Err(DialError::Busy(self.shared.busy().unwrap_or_default())))?,
        };
        match taken {
            Taken::Stream(sender, link, slot) => Ok((sender, link, slot)),
            Taken::Other(never) => match never {},
        }
    }
}

impl Dial for Backend {
    type Stream = Linked<FirstBytes<Plain>>;
    type Other = Infallible;
    type Error = DialError;

    const DIRECTION: Direction = Direction::Inbound;

    async fn dial(self: &Arc<Self>) -> Result<Option<Dialled<Self::Stream>>, DialError> {
        let stream = self.dialer.dial().await.map_err(|error| DialError::Unreachable(error.to_string()))?;
        let (stream, is_other) = FirstBytes::expect(stream, true);
        let (stream, _is_gone) = Linked::new(stream);
        let link = stream.link().clone();
        let reason = match client::begin(&self.http2, stream, &link, CONNECT).await {
            Ok((sender, connection)) => return Ok(Some(Dialled { sender, connection, link })),
            Err(Unsettled::Closed) => "it closes each connection at once".into(),
            Err(_) if is_other.load(Ordering::Relaxed) => "it does not speak HTTP/2".into(),
            Err(Unsettled::Failed(error)) => root_cause(&error).to_string(),
            Err(Unsettled::Silent) => "it accepts connections and says nothing in HTTP/2".into(),
        };
        Err(DialError::Unsettled(reason))
    }

    fn other(&self) -> Option<Infallible> {
        None
    }
}

impl DialError {
    /// What whoever sent the request is told. `address` is where the server should listen.
    pub fn told(self, address: &str, patience: Duration) -> ProxyError {
        let address = address.to_owned();
        match self {
            Self::Unreachable(reason) => ProxyError::BackendUnreachable { address, reason },
            Self::Unsettled(reason) => ProxyError::BackendFailed { address, reason },
            Self::Busy(most) => ProxyError::AgentBusy {
                most,
                waited_ms: patience.as_millis(),
                key: "its own SETTINGS_MAX_CONCURRENT_STREAMS",
            },
        }
    }
}
