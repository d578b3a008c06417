//! Answers that do not end: rosters for the sidecar, events for whoever follows the mesh.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use mesh_shared::event::Event;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::answer::{Answer, keeping};
use crate::events::Listening;
use crate::state::{Counters, Follower, State};

/// A silent stream says this often that it lives.
const ROSTER_KEEP_ALIVE: Duration = Duration::from_secs(5);
const EVENTS_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Says that the reader's last event is too old, or of an earlier run of registryd.
const GAP: &str = "event: missed\ndata: {\"event\":\"missed\",\"detail\":\"earlier changes are no longer known; read /mesh/nodes again\"}\n\n";

/// What a sidecar follows the roster from: `None` if it takes whole ones only, as older sidecars do; else
/// the revision that it has, or one that nobody knows.
pub(super) fn roster_revision(query: &str) -> Option<u64> {
    let since = query.split('&').find_map(|pair| pair.strip_prefix("since="))?;
    Some(since.parse().unwrap_or(0))
}

/// The roster now, or what it lacks that `since` has, then whatever differs for routing; a line each.
pub(super) fn rosters(
    state: &Arc<State>,
    since: Option<u64>,
    follower: Option<Follower>,
    permit: Option<OwnedSemaphorePermit>,
) -> Answer {
    let mut rosters = state.rosters();
    rosters.mark_changed();
    let reader = RosterReader { state: state.clone(), rosters, since };
    endless(
        (follower, permit),
        "application/x-ndjson",
        stream::unfold(reader, |mut reader| async {
            let line = reader.next().await?;
            Some((line, reader))
        }),
    )
}

/// One reader of the roster.
struct RosterReader {
    state: Arc<State>,
    rosters: watch::Receiver<u64>,
    since: Option<u64>,
}

impl RosterReader {
    async fn next(&mut self) -> Option<Bytes> {
        match timeout(ROSTER_KEEP_ALIVE, self.rosters.changed()).await {
            Err(_) => Some(Bytes::from_static(b"\n")),
            Ok(Err(_)) => None,
            Ok(Ok(())) => {
                self.rosters.mark_unchanged();
                let update = self.state.roster_since(self.since);
                let mut line = serde_json::to_vec(&update).ok()?;
                line.push(b'\n');
                self.since = self.since.map(|_| update.revision);
                Some(line.into())
            }
        }
    }
}

/// What happened after `last_id`, then what happens. Where that is no longer known, the reader is told so by an
/// event `missed` and gets what is kept.
pub(super) fn events(state: &Arc<State>, last_id: Option<u64>, permit: OwnedSemaphorePermit) -> Answer {
    let Listening { missed, gap, newest, live } = state.events.listen(last_id);
    // Shows the reader that it is connected, even when nothing happens. A new one gets a number to resume from.
    let mut start = String::from(": connected\n\n");
    if last_id.is_none() {
        start = format!(": connected\nid: {newest}\n\n");
    }
    if gap {
        start.push_str(GAP);
    }
    let last_id = last_id.filter(|_| !gap).unwrap_or(newest);
    let follower =
        Reader { state: state.clone(), start: Some(start.into()), missed: missed.into(), live, last_id };
    endless(
        (OpenStream::new(state), permit),
        "text/event-stream",
        stream::unfold(follower, |mut follower| async {
            let chunk = follower.next().await?;
            Some((chunk, follower))
        }),
    )
}

/// Counts a stream for as long as it is open.
struct OpenStream(Arc<State>);

impl OpenStream {
    fn new(state: &Arc<State>) -> Self {
        Counters::add(&state.counters.open_streams);
        Self(state.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.counters.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One reader of the events.
struct Reader {
    state: Arc<State>,
    start: Option<Bytes>,
    missed: VecDeque<Arc<Event>>,
    live: Receiver<Option<Arc<Event>>>,
    last_id: u64,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(start) = self.start.take() {
            return Some(start);
        }
        loop {
            if let Some(event) = self.missed.pop_front() {
                self.last_id = event.id;
                let (name, data) = (event.event.as_str(), serde_json::to_string(&*event).ok()?);
                return Some(format!("id: {}\nevent: {name}\ndata: {data}\n\n", event.id).into());
            }
            match timeout(EVENTS_KEEP_ALIVE, self.live.recv()).await {
                Err(_) => return Some(Bytes::from_static(b": keep-alive\n\n")),
                Ok(Ok(Some(event))) => self.missed.push_back(event),
                Ok(Ok(None)) => return Some(Bytes::from_static(GAP.as_bytes())),
                Ok(Err(RecvError::Lagged(_))) => {
                    // A reader too slow for the channel continues from the kept events.
                    let Listening { missed, gap, live, .. } = self.state.events.listen(Some(self.last_id));
                    (self.missed, self.live) = (missed.into(), live);
                    if gap {
                        return Some(Bytes::from_static(GAP.as_bytes()));
                    }
                }
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }
}

/// An answer that continues for as long as its reader is there, as does what is `kept`.
fn endless(
    kept: impl Send + 'static,
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Answer {
    let frames = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    keeping(answer, kept)
}
