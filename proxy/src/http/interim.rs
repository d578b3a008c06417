//! Interim answers (1xx; RFC 9110, section 15.2) on their way from whoever will give the final one to the caller.
//!
//! `100 Continue` is the agent's to give: until it has, the body of a request that waits for it ([`Interim::expects`]) is not
//! asked for, and an agent that refuses the request is spared the upload. Others, such as `103 Early Hints`, pass. `101` is
//! none of these ([`crate::http::upgrade`]).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use http::header::EXPECT;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::ext::on_informational;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use crate::http::headers::{self, Writer};

/// Answers that wait for the caller at most, and in all to one request; more are dropped.
const MOST: (usize, u32) = (8, 64);
/// The bytes of their headers in all.
const MOST_BYTES: usize = 64 << 10;
/// How long a body is held back. Not every server gives the sign (RFC 9110, section 10.1.1).
const PATIENCE: Duration = Duration::from_secs(5);
/// When a body that was never asked for is read after the answer has begun. Before, hyper would tell the caller to continue.
pub const UNASKED: Duration = Duration::from_millis(200);

/// The interim answers to one request.
#[derive(Debug, Default)]
pub struct Interim {
    expects: bool,
    /// Who writes them; `None`: nobody may.
    writer: Option<Writer>,
    state: Mutex<State>,
    /// Whoever takes the answers.
    taker: AtomicWaker,
    /// Whoever reads the body.
    reader: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Response<()>>,
    /// How many there have been.
    taken: u32,
    bytes: usize,
    stage: Stage,
}

/// What is known of the body of a request whose caller waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nobody asked for it.
    #[default]
    Unasked,
    /// The final answer has begun. Whoever gave it may read the body all the same, if the caller sends it.
    Answered,
    /// The answer has ended.
    Over,
    /// The caller may send it.
    Continues,
}

impl Interim {
    /// Those to `request`, of which there are none yet, from `writer`.
    pub fn new<B: Body>(request: &Request<B>, writer: Writer) -> Arc<Self> {
        // HTTP/1.0 knows none.
        let writer = (request.version() >= Version::HTTP_11).then_some(writer);
        let is_asked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let expects = writer.is_some()
            && request.headers().get(EXPECT).is_some_and(is_asked)
            && !request.body().is_end_stream();
        Arc::new(Self { expects, writer, ..Self::default() })
    }

    /// Whether the caller waits for `100 Continue` before it sends the body.
    pub fn expects(&self) -> bool {
        self.expects
    }

    /// Takes an interim answer for the caller.
    pub fn push(&self, status: StatusCode, headers: HeaderMap) {
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        if status == StatusCode::CONTINUE {
            self.go_on();
            if !self.expects {
                return;
            }
        }
        let Some(writer) = self.writer else { return };
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        headers::remove_hop_by_hop(answer.headers_mut());
        headers::remove_forged(answer.headers_mut(), writer);
        {
            let state = &mut *self.state.lock();
            state.bytes +=
                answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
            if state.waiting.len() >= MOST.0 || state.taken >= MOST.1 || state.bytes > MOST_BYTES {
                return;
            }
            state.taken += 1;
            state.waiting.push_back(answer);
        }
        self.taker.wake();
    }

    /// Lets the caller send the body.
    pub fn go_on(&self) {
        self.reach(Stage::Continues);
    }

    /// The final answer has begun.
    pub fn answered(&self) {
        self.reach(Stage::Answered);
    }

    /// The final answer has ended.
    pub fn over(&self) {
        self.reach(Stage::Over);
    }

    fn reach(&self, stage: Stage) {
        if !self.expects {
            return;
        }
        {
            let state = &mut *self.state.lock();
            state.stage = stage.max(state.stage);
        }
        self.reader.wake();
    }

    /// The next answer for the caller.
    pub fn poll_next(&self, context: &Context<'_>) -> Poll<Response<()>> {
        let next = || self.state.lock().waiting.pop_front();
        if let Some(answer) = next() {
            return Poll::Ready(answer);
        }
        self.taker.register(context.waker());
        // It may have come just now.
        next().map_or(Poll::Pending, Poll::Ready)
    }

    /// Whether the caller may send the body.
    pub fn continues(&self) -> bool {
        self.stage() == Stage::Continues
    }

    fn stage(&self) -> Stage {
        self.state.lock().stage
    }
}

/// Runs `answer` to its end. What comes before it is given to `take`; the answer waits until that `is_out`, and whoever takes
/// it out wakes the task.
pub async fn relayed<T>(
    interim: &Interim,
    answer: impl Future<Output = T>,
    mut take: impl FnMut(Response<()>),
    is_out: impl Fn() -> bool,
) -> T {
    let (mut answer, mut answered) = (pin!(answer), None);
    poll_fn(|context| {
        if answered.is_none()
            && let Poll::Ready(ready) = answer.as_mut().poll(context)
        {
            answered = Some(ready);
        }
        while let Poll::Ready(early) = interim.poll_next(context) {
            take(early);
        }
        match is_out() {
            true => answered.take().map_or(Poll::Pending, Poll::Ready),
            false => Poll::Pending,
        }
    })
    .await
}

/// Holds a body back that its sender does not send yet.
pub struct Gate {
    interim: Arc<Interim>,
    patience: Pin<Box<Sleep>>,
    is_answered: bool,
}

impl Gate {
    /// Shut, until `interim` lets the caller go on, or for as long as one waits for that.
    pub fn new(interim: Arc<Interim>) -> Self {
        Self { interim, patience: Box::pin(sleep(PATIENCE)), is_answered: false }
    }

    /// Ready once it is known whether the body is to be read.
    pub fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        self.interim.reader.register(context.waker());
        match self.interim.stage() {
            Stage::Continues => return Poll::Ready(true),
            Stage::Over => return Poll::Ready(false),
            Stage::Answered if !std::mem::replace(&mut self.is_answered, true) => {
                self.patience.as_mut().reset(Instant::now() + UNASKED);
            }
            Stage::Answered | Stage::Unasked => {}
        }
        self.patience.as_mut().poll(context).map(|()| true)
    }
}

/// Gives the interim answers that hyper reads on HTTP/1.1 to `interim`.
pub fn hear<B>(request: &mut Request<B>, interim: Arc<Interim>) {
    on_informational(request, move |answer| interim.push(answer.status(), answer.headers().clone()));
}

/// An interim answer as HTTP/1.1 has it.
pub fn write_http1(answer: &Response<()>, bytes: &mut BytesMut) {
    let status = answer.status();
    let reason = status.canonical_reason().unwrap_or_default();
    for part in [&b"HTTP/1.1 "[..], status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"] {
        bytes.extend_from_slice(part);
    }
    for (name, value) in answer.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
}
