//! One live view, read line by line.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use mesh_client::{Answer, Daemon};
use mesh_shared::live::{LIVE, LiveUpdate, NOT_PERMITTED};
use mesh_shared::name::NodeName;
use tokio::time::timeout;

use crate::dashboard::model::Source;

/// More than a line with as much as it may show.
const MAX_LINE_BYTES: usize = 4 << 20;
const MAX_REFUSAL_BYTES: usize = 64 << 10;
/// A line comes each second, so one that does not come for this long is a sign that something is wrong.
const SILENCE: Duration = Duration::from_secs(10);

/// An open live view.
#[derive(Debug)]
pub struct Feed {
    body: Incoming,
    rest: BytesMut,
    /// So much of the rest has no line break.
    searched: usize,
}

impl Feed {
    /// Asks this host's sidecar for its live view, or for that of `node`.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(sidecar: &Daemon, node: Option<&NodeName>) -> Result<Self, Source> {
        let path = node.map_or_else(|| LIVE.to_owned(), |node| format!("{LIVE}?node={node}"));
        let answer =
            sidecar.open(Method::GET, &path, HeaderMap::new(), Bytes::new()).await.map_err(Source::away)?;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::OK {
            return Ok(Self { body, rest: BytesMut::new(), searched: 0 });
        }
        let body = timeout(SILENCE, Limited::new(body, MAX_REFUSAL_BYTES).collect()).await;
        let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let refused = Answer { status: head.status, headers: head.headers, body };
        Err(match refused.problem() {
            Some(problem) if problem.code == NOT_PERMITTED => {
                Source::NotPermitted { detail: crate::output::one_line(&problem.detail) }
            }
            Some(problem) => Source::away(problem.detail),
            None if head.status == StatusCode::NOT_FOUND => Source::away(
                "its mesh-proxy has no live view: a version before that, which is to be upgraded",
            ),
            None => Source::away(sidecar.unexpected(LIVE, head.status.to_string())),
        })
    }

    /// The next line.
    ///
    /// # Errors
    /// Why there are no more.
    pub async fn next(&mut self) -> Result<LiveUpdate, Source> {
        loop {
            let found = self.rest[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = found.map(|at| self.searched + at) {
                let line = self.rest.split_to(end + 1);
                self.searched = 0;
                return serde_json::from_slice(&line)
                    .map_err(|error| Source::away(format!("its live view is of another kind ({error})")));
            }
            self.searched = self.rest.len();
            if self.searched > MAX_LINE_BYTES {
                return Err(Source::away(format!(
                    "a line of its live view has more than {MAX_LINE_BYTES} bytes"
                )));
            }
            let frame = timeout(SILENCE, self.body.frame()).await.map_err(|_| {
                Source::away(format!("its live view has been silent for {} s", SILENCE.as_secs()))
            })?;
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(Source::away(format!("its live view broke off ({error})"))),
                None => return Err(Source::away("its live view ended: the sidecar may be restarting")),
            }
        }
    }
}
