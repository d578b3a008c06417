//! The connections on which requests come, below HTTP: [`socket`], [`refusal`] and
//! [`interim`] for HTTP/1.1 and, for peers, [`watch`].

pub mod interim;
pub mod refusal;
pub mod socket;
pub mod watch;

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::caller::Connection;
use crate::http::body::ResponseBody;
use crate::http::headers::Writer;
use crate::http::incoming::Incoming;
use crate::http::interim::Interim;
use interim::{Aside, WithAside};
use refusal::Refusing;

/// A connection as hyper reads and writes it.
pub type Http1Stream<S> = TokioIo<WithAside<Refusing<S>>>;
/// A request as hyper reads it.
type Parsed = Request<hyper::body::Incoming>;

/// What hyper serves HTTP/1.1 on, and by: `answer` gives `writer`'s answers, with the interim ones before them, to what
/// comes on `stream`.
pub fn http1<S, F>(
    stream: S,
    connection: Arc<Connection>,
    writer: Writer,
    answer: impl Fn(Request<Incoming>, Arc<Interim>) -> F,
) -> (Http1Stream<S>, impl Service<Parsed, Response = Response<ResponseBody>, Error = Infallible, Future: Send>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Response<ResponseBody>> + Send,
{
    let aside = Aside::default();
    let stream = TokioIo::new(WithAside::new(Refusing::new(stream, connection), aside.clone()));
    let service = service_fn(move |request: Parsed| {
        let request = request.map(Incoming::Left);
        let interim = Interim::new(&request, writer);
        aside.relay(interim.clone(), answer(request, interim))
    });
    (stream, service)
}
