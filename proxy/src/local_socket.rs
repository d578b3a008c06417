//! Requests to other programs of this host on their unix sockets, each on a connection of its own: they are rare, and
//! the sockets are local.

use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::error::BoxError;
use crate::http::headers::announce_body;
use crate::io::early_answer::EarlyAnswer;

/// Sends one request.
///
/// # Errors
/// Nobody is there (an [`std::io::Error`]), or whoever is breaks off.
pub async fn exchange<B>(socket: &Path, mut request: Request<B>) -> Result<Response<Incoming>, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(EarlyAnswer::new(stream))).await?;
    tokio::spawn(connection);
    announce_body(&mut request);
    Ok(sender.send_request(request).await?)
}
