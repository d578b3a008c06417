//! A new certificate is tried before it is used: the CA's node has to accept it in a handshake, and answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::roster::table::Route;
use crate::tls::credentials::{CredentialStore, Credentials};
use crate::upstream::connect::{Protocols, dial};
use mesh_shared::local_api::PING;
use mesh_shared::root_cause;

const LIMIT: Duration = Duration::from_secs(15);

/// Connects with `credentials`, which are not in use, and asks for an answer: with TLS 1.3, a client learns only then that
/// its certificate was refused.
///
/// # Errors
/// In words: nobody is there, or whoever is does not accept it.
pub async fn accepted(route: &Route, credentials: Credentials) -> Result<(), String> {
    let store = Arc::new(CredentialStore::on_trial(credentials));
    let tried = async {
        let dialed = dial(route, &store, None, Protocols::Http1, LIMIT).await;
        let (stream, _) = dialed.map_err(|error| error.to_string())?;
        let link = stream.link().clone();
        let words = |error: hyper::Error| match link.refusal() {
            Some(reason) => format!("it refuses the certificate: {reason}"),
            None => root_cause(&error).to_string(),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
        let connection = tokio::spawn(connection);
        let request = Request::get(PING).header(HOST, route.authority.as_str()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map(drop).map_err(words);
        connection.abort();
        answer
    };
    timeout(LIMIT, tried).await.unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())))
}
