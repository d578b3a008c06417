//! `meshctl watch`: changes in the mesh as they happen, over server-sent events.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_shared::logging::Excerpt;
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::output::{one_line, print};
use crate::sse::{self, Event, Events};
use crate::{Failure, Global};
use mesh_client::{ClientError, Daemon};

/// Between two attempts to reach registryd again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Shows events until interrupted; after a loss it continues where it was.
///
/// # Errors
/// registryd cannot be reached at the start.
pub async fn run(global: &Global) -> Result<ExitCode, Failure> {
    let daemon = global.registryd()?;
    let mut events = Events::default();
    let mut body = sse::connect(&daemon, &mut events).await?;
    if std::io::stderr().is_terminal() {
        eprintln!("watching; Ctrl-C ends");
    }
    loop {
        match follow(&daemon, body, &mut events, global.json).await {
            Err(Failure::Client(error)) => {
                eprintln!("meshctl: {}; trying again", one_line(&error.to_string()));
            }
            ended => ended?,
        }
        body = loop {
            tokio::time::sleep(RECONNECT).await;
            match sse::connect(&daemon, &mut events).await {
                Ok(body) => break body,
                Err(error) => eprintln!("meshctl: {}; trying again", one_line(&error.to_string())),
            }
        };
    }
}

/// One connection's events. Returns when registryd closes it.
async fn follow(
    daemon: &Daemon,
    mut body: Incoming,
    events: &mut Events,
    as_json: bool,
) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| ClientError::Broken { daemon: daemon.clone(), source })?;
        let Ok(data) = frame.into_data() else { continue };
        for event in events.feed(&data) {
            print(&if as_json { format!("{}\n", json(&event)) } else { line(&event) })?;
        }
    }
    Ok(())
}

/// For programs: one JSON document a line.
fn json(event: &Event) -> Value {
    serde_json::from_str(&event.data)
        .unwrap_or_else(|_| serde_json::json!({ "event": event.name, "data": event.data }))
}

/// For people: time, what happened, to whom, and the state it is in.
fn line(event: &Event) -> String {
    let format = format_description!("[hour]:[minute]:[second]");
    let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
    // An event that was missed meanwhile says when it was.
    let at = data["at"].as_u64().and_then(|ms| OffsetDateTime::from_unix_timestamp((ms / 1000) as i64).ok());
    let time = at.unwrap_or_else(OffsetDateTime::now_utc).format(format).unwrap_or_default();
    // Some events are the node itself, others hold it under a name.
    let node = data.get("node").filter(|node| node.is_object()).unwrap_or(&data);
    let text = |key: &str| node.get(key).and_then(Value::as_str);
    let name = text("name").or_else(|| data.get("node").and_then(Value::as_str));
    let shown = match name {
        Some(name) => {
            let status = text("status").map(|status| format!("  {status}")).unwrap_or_default();
            let reason = data.get("reason").and_then(Value::as_str);
            format!("{name:<16}{status}{}", reason.map(|reason| format!("  {reason}")).unwrap_or_default())
        }
        None => data.get("detail").and_then(Value::as_str).unwrap_or(&event.data).to_owned(),
    };
    format!("{time}  {:<10}{}\n", event.name, Excerpt { text: &shown, max_chars: 200 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_in_a_line() {
        let event = Event { name: "joined".into(), data: r#"{"name":"ct111","status":"online"}"#.into() };
        assert!(line(&event).contains("joined    ct111             online"), "{:?}", line(&event));
        assert_eq!(json(&event)["name"], "ct111");
    }
}
