//! `meshctl watch`: changes in the mesh as they happen, over server-sent events.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_shared::local_api::EVENTS;
use mesh_shared::logging::Excerpt;
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::output::print;
use crate::{Failure, Global};
use mesh_client::{Answer, ClientError, Daemon};

/// Between two attempts to reach registryd again.
const RECONNECT: Duration = Duration::from_secs(1);
/// A line longer than this is no event of ours.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Shows events until interrupted; after a loss it goes on where it was.
///
/// # Errors
/// registryd is away at the start.
pub async fn run(global: &Global) -> Result<ExitCode, Failure> {
    let daemon = global.registryd()?;
    let mut events = Events::default();
    let mut body = connect(&daemon, &events).await?;
    if std::io::stderr().is_terminal() {
        eprintln!("watching; Ctrl-C ends");
    }
    loop {
        match follow(&daemon, body, &mut events, global.json).await {
            Err(Failure::Client(error)) => eprintln!("meshctl: {error}; trying again"),
            ended => ended?,
        }
        body = loop {
            tokio::time::sleep(RECONNECT).await;
            match connect(&daemon, &events).await {
                Ok(body) => break body,
                Err(error) => eprintln!("meshctl: {error}; trying again"),
            }
        };
    }
}

async fn connect(daemon: &Daemon, events: &Events) -> Result<Incoming, ClientError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    if let Some(id) = events.last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert("last-event-id", id);
    }
    let (head, body) = daemon.open(Method::GET, EVENTS, headers, Bytes::new()).await?.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let status = head.status.to_string();
    let refused = Answer { status: head.status, headers: head.headers, body };
    daemon.accepted(EVENTS, refused).and(Err(daemon.unexpected(EVENTS, status)))
}

/// One connection's events. Returns when registryd closes it.
async fn follow(daemon: &Daemon, mut body: Incoming, events: &mut Events, json: bool) -> Result<(), Failure> {
    events.restart();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| ClientError::Broken { daemon: daemon.clone(), source })?;
        let Ok(data) = frame.into_data() else { continue };
        for event in events.feed(&data) {
            print(&if json { format!("{}\n", event.json()) } else { event.line() })?;
        }
    }
    Ok(())
}

/// A parser of server-sent events (HTML living standard, section 9.2).
#[derive(Debug, Default)]
struct Events {
    last_id: Option<String>,
    line: Vec<u8>,
    name: String,
    data: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
}

impl Events {
    /// Forgets half an event, not the last id.
    fn restart(&mut self) {
        self.line.clear();
        self.name.clear();
        self.data.clear();
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
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

impl Event {
    /// For programs: one JSON document a line.
    fn json(&self) -> Value {
        serde_json::from_str(&self.data)
            .unwrap_or_else(|_| serde_json::json!({ "event": self.name, "data": self.data }))
    }

    /// For people: time, what happened, to whom, and the state it is in.
    fn line(&self) -> String {
        let format = format_description!("[hour]:[minute]:[second]");
        let time = OffsetDateTime::now_utc().format(format).unwrap_or_default();
        let data: Value = serde_json::from_str(&self.data).unwrap_or_default();
        // Some events are the node itself, others hold it under a name.
        let node = data.get("node").filter(|node| node.is_object()).unwrap_or(&data);
        let text = |key: &str| node.get(key).and_then(Value::as_str);
        let name = text("name").or_else(|| data.get("node").and_then(Value::as_str));
        let shown = match name {
            Some(name) => {
                let status = text("status").map(|status| format!("  {status}")).unwrap_or_default();
                let reason = data.get("reason").and_then(Value::as_str);
                format!(
                    "{name:<16}{status}{}",
                    reason.map(|reason| format!("  {reason}")).unwrap_or_default()
                )
            }
            None => data.get("detail").and_then(Value::as_str).unwrap_or(&self.data).to_owned(),
        };
        format!("{time}  {:<10}{}\n", self.name, Excerpt { text: &shown, max_chars: 200 })
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
            assert_eq!(found[0].json()["name"], "ct111");
            assert!(found[0].line().contains("joined    ct111             online"), "{:?}", found[0].line());
            assert_eq!(events.last_id.as_deref(), Some("8"));
        }
    }
}
