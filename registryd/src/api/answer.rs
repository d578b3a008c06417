//! The forms of answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use mesh_shared::local_api::{MESH_ERROR, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// How long a body may take.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// What a request gets.
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

pub(super) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => typed("application/json", body),
        Err(error) => refusal(500, "internal", format!("the answer cannot be written as JSON: {error}")),
    }
}

pub(super) fn text(body: String) -> Answer {
    typed("text/plain; version=0.0.4; charset=utf-8", body.into_bytes())
}

fn typed(content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::from(body).boxed_unsync());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(Empty::new().boxed_unsync());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// The answer, with something that is kept until it was sent or given up.
pub(super) fn keeping(answer: Answer, kept: impl Send + 'static) -> Answer {
    answer.map(|body| Kept { body, _kept: kept }.boxed_unsync())
}

struct Kept<K> {
    body: UnsyncBoxBody<Bytes, Infallible>,
    _kept: K,
}

// Neither field is ever pinned in place.
impl<K> Unpin for Kept<K> {}

impl<K> Body for Kept<K> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An error with its stable code and a sentence that helps.
pub(super) fn refusal(status: u16, code: &'static str, detail: String) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let problem = Problem::new(code, status.as_u16(), status.canonical_reason().unwrap_or("Error"), detail);
    let mut answer = typed("application/problem+json", serde_json::to_vec(&problem).unwrap_or_default());
    *answer.status_mut() = status;
    answer.headers_mut().insert(MESH_ERROR, HeaderValue::from_static(code));
    answer
}

/// Reads a whole body of at most `limit` bytes; the error is the answer to give.
pub(super) async fn read_bytes(body: &mut Incoming, limit: usize, time: Duration) -> Result<Bytes, Answer> {
    let whole = timeout(time, Limited::new(body, limit).collect()).await;
    match whole {
        Err(_) => {
            Err(refusal(408, "body_too_slow", format!("the body took longer than {} s", time.as_secs())))
        }
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(refusal(413, "body_too_large", format!("the body is longer than {limit} bytes")))
        }
        Ok(Err(error)) => Err(refusal(400, "bad_request", format!("the body broke off: {error}"))),
    }
}

/// Reads a JSON body of at most `limit` bytes; the error is the answer to give.
pub(super) async fn read_body<T: DeserializeOwned>(body: &mut Incoming, limit: usize) -> Result<T, Answer> {
    let bytes = read_bytes(body, limit, BODY_LIMIT).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| refusal(400, "bad_request", format!("the body is not as expected: {error}")))
}
