//! Readers of the live view.

use std::path::PathBuf;

use http::Method;
use hyper::body::Incoming;
use mesh_shared::live::{EndedExchange, LiveExchange, LiveUpdate, MESH_LIVE, Refusal};
use tokio::net::UnixStream;

use crate::mesh::{Mesh, Node};
use crate::process::text;
use crate::tls::Client;
use crate::web::{self, Answer, Connection};
use crate::within;

/// The sidecar's own socket.
pub fn socket(node: &Node) -> PathBuf {
    node.folder().join("state/admin.sock")
}

/// Somebody who follows what a sidecar carries.
pub struct Reader {
    body: Incoming,
    unread: Vec<u8>,
    _connection: Connection,
    /// All that came.
    pub raw: String,
}

impl Reader {
    /// Reads on the socket of this node's sidecar: `target` is a path.
    ///
    /// # Errors
    /// It is refused.
    pub async fn open(node: &Node, target: &str) -> Result<Self, Box<Answer>> {
        let path = socket(node);
        let stream =
            UnixStream::connect(&path).await.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::on(Connection::over(stream).await, target).await
    }

    /// Reads as a peer does, with this certificate's name.
    ///
    /// # Errors
    /// It is refused.
    pub async fn of_peer(mesh: &Mesh, peer: &str, node: &Node) -> Result<Self, Box<Answer>> {
        let client = Client::new(&mesh.ca, &mesh.ca.node(peer));
        Self::on(client.http(node.inbound(), &node.name).await, MESH_LIVE).await
    }

    async fn on(mut connection: Connection, target: &str) -> Result<Self, Box<Answer>> {
        let request = web::request(Method::GET, target).body(web::empty()).unwrap();
        let response = within("the head of the live view", connection.open(request)).await.unwrap();
        if response.status() != 200 {
            return Err(Box::new(Answer::read(response).await.unwrap()));
        }
        assert_eq!(response.headers()["content-type"], mesh_shared::live::CONTENT_TYPE);
        let body = response.into_body();
        Ok(Self { body, unread: Vec::new(), _connection: connection, raw: String::new() })
    }

    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Option<LiveUpdate> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                self.raw.push_str(&text(&line));
                let update = serde_json::from_slice(&line);
                return Some(update.unwrap_or_else(|error| panic!("{error}: {}", text(&line))));
            }
            self.unread.extend_from_slice(&web::next_data(&mut self.body).await?);
        }
    }

    /// Reads until a line gives a value.
    pub async fn until<T>(&mut self, what: &str, mut look: impl FnMut(&LiveUpdate) -> Option<T>) -> T {
        within(what, async {
            loop {
                let update = self.next().await.unwrap_or_else(|| panic!("ended before: {what}"));
                if let Some(found) = look(&update) {
                    return found;
                }
            }
        })
        .await
    }

    /// Reads until an exchange with this path is in flight.
    pub async fn in_flight(&mut self, path: &str) -> LiveExchange {
        let what = format!("{path} is in flight");
        self.until(&what, |update| update.in_flight.iter().find(|each| each.path == path).cloned()).await
    }

    /// Reads until a connection has been refused for a reason of this kind.
    pub async fn refused(&mut self, cause: &str) -> Refusal {
        let what = format!("a connection is refused: {cause}");
        self.until(&what, |update| update.refused.iter().find(|each| each.cause == cause).cloned()).await
    }

    /// Reads until an exchange with this path has ended.
    pub async fn ended(&mut self, path: &str) -> EndedExchange {
        let what = format!("{path} ended");
        self.until(&what, |update| update.ended.iter().find(|each| each.exchange.path == path).cloned()).await
    }
}
