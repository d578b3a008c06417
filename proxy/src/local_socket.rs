//! Requests to other programs of this host on their unix sockets, each on a connection of its own: they are rare, and
//! the sockets are local.

use std::path::Path;

use bytes::Bytes;
use http::header::{EXPECT, HOST, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::error::BoxError;
use crate::http::headers::announce_body;
use crate::io::early_answer::EarlyAnswer;

/// Makes a request that came from elsewhere one for the same path of the program that is called `host` here.
pub fn redirect(parts: &mut Parts, host: &'static str) {
    // It has nothing to say before it has the body.
    parts.headers.remove(EXPECT);
    parts.headers.insert(HOST, HeaderValue::from_static(host));
    parts.version = Version::HTTP_11;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().unwrap_or_default();
}

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
