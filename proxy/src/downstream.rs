//! The connections on which requests come, below HTTP: [`socket`], [`http1`] with [`refusal`] and [`interim`] for
//! HTTP/1.1 and, for peers, [`watch`].

pub mod http1;
pub mod interim;
pub mod refusal;
pub mod socket;
pub mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};
use hyper::server::conn::http1::Builder;
use hyper::service::{Service, service_fn};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::caller::Connection;
use crate::http::body::ResponseBody;
use crate::http::headers::Writer;
use crate::http::incoming::Incoming;
use crate::http::interim::Interim;
use crate::io::readable::Readable;
use http1::Http1;
use interim::{Aside, WithAside};
use refusal::Refusing;

/// A request as hyper reads it.
type Parsed = Request<hyper::body::Incoming>;

/// Serves HTTP/1.1 on `stream`, as `builder` says, which allows `header` for the head of each request: `answer` gives `writer`'s
/// answers, with the interim ones before them.
pub fn serve_http1<S, F>(
    builder: Arc<Builder>,
    stream: S,
    connection: Arc<Connection>,
    writer: Writer,
    header: Option<Duration>,
    answer: impl Fn(Request<Incoming>, Arc<Interim>) -> F + Unpin,
) -> Http1<S, impl Service<Parsed, Response = Response<ResponseBody>, Error = Infallible, Future: Send> + Unpin>
where
    S: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    F: Future<Output = Response<ResponseBody>> + Send,
{
    let aside = Aside::default();
    let stream = WithAside::new(Refusing::new(stream, connection.clone()), aside.clone());
    let service = service_fn(move |request: Parsed| {
        let request = request.map(Incoming::Left);
        let interim = Interim::new(&request, writer);
        aside.relay(interim.clone(), answer(request, interim))
    });
    Http1::new(builder, stream, connection, header, service)
}
