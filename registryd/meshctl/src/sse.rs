//! Server-sent events, as registryd tells of changes in the mesh (HTML living standard, section 9.2).

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use hyper::body::Incoming;
use mesh_client::{ClientError, Daemon};
use mesh_shared::local_api::EVENTS;

/// A line longer than this is not an event of ours.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Begins to follow registryd's events, after the last one that `events` has seen.
///
/// # Errors
/// registryd cannot be reached, or refuses.
pub async fn connect(daemon: &Daemon, events: &mut Events) -> Result<Incoming, ClientError> {
    events.restart();
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    if let Some(id) = events.last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert("last-event-id", id);
    }
    daemon.follow(EVENTS, headers).await
}

/// A parser of their stream, whose lines come in any pieces.
#[derive(Debug, Default)]
pub struct Events {
    last_id: Option<String>,
    line: Vec<u8>,
    name: String,
    data: String,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// What it says; of registryd, JSON.
    pub data: String,
}

impl Events {
    /// Forgets half an event, not the last id.
    fn restart(&mut self) {
        self.line.clear();
        self.name.clear();
        self.data.clear();
    }

    /// Takes the next piece, and gives the events that it completes.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut complete = Vec::new();
        for &b in bytes {
            if b != b'\n' {
                if self.line.len() < MAX_LINE_BYTES {
                    self.line.push(b);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
            complete.extend(self.take_line(line.trim_end_matches('\r')));
        }
        complete
    }

    fn take_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            return (!data.is_empty()).then_some(Event { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.last_id = Some(value.into()),
            "event" => self.name = value.into(),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_any_pieces() {
        let stream = b": hello\n\nid: 7\nevent: joined\ndata: {\"name\":\"ct111\",\r\ndata: \"status\":\"online\"}\n\nid: 8\n";
        for size in [1, 5, stream.len()] {
            let mut events = Events::default();
            let found: Vec<_> = stream.chunks(size).flat_map(|piece| events.feed(piece)).collect();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].name, "joined");
            assert_eq!(found[0].data, "{\"name\":\"ct111\",\n\"status\":\"online\"}");
            assert_eq!(events.last_id.as_deref(), Some("8"));
        }
    }
}
