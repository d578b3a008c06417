//! The live view of a sidecar (`mesh_shared::live`), read line by line from this host's own one.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_shared::config::Admin;
use mesh_shared::config::keys::DEFAULT_STATE_DIR;
use mesh_shared::live::{EndedExchange, LOCAL_LIVE, LiveExchange, LiveUpdate, Refusal};
use mesh_shared::logging::Excerpt;
use mesh_shared::name::NodeName;
use tokio::time::{sleep, timeout};

use crate::output::{LINE_CHARS, one_line};
use crate::{Failure, Global};
use mesh_client::{ClientError, Daemon};

/// Lines come each second. After so long without one, something is wrong on the way.
const SILENCE: Duration = Duration::from_secs(10);
/// Between two attempts to reach the sidecar again.
const RECONNECT: Duration = Duration::from_secs(1);
/// More than the longest line of a sidecar.
const MAX_LINE_BYTES: usize = 8 << 20;

/// What a sidecar tells. Text that other hosts chose is tamed when it comes, so that it steers no terminal.
pub struct Feed {
    daemon: Daemon,
    path: String,
    body: Incoming,
    unread: Vec<u8>,
}

impl Feed {
    /// Asks this host's sidecar for what it carries, or for what the sidecar of `node` does.
    ///
    /// # Errors
    /// The sidecar is away or too old, or the node does not permit it.
    pub async fn open(node: Option<&NodeName>, global: &Global) -> Result<Self, Failure> {
        let socket = global.config()?.map_or_else(
            || Admin::default_socket(Path::new(DEFAULT_STATE_DIR)),
            |config| config.proxy.admin.socket,
        );
        Ok(Self::of(Daemon::Admin(socket), node).await?)
    }

    /// As [`Self::open`], of a sidecar whose socket is known.
    ///
    /// # Errors
    /// As there.
    pub async fn of(daemon: Daemon, node: Option<&NodeName>) -> Result<Self, ClientError> {
        let path = match node {
            Some(node) => format!("{LOCAL_LIVE}?node={node}"),
            None => LOCAL_LIVE.into(),
        };
        let body = daemon.follow(&path, HeaderMap::new()).await?;
        Ok(Self { daemon, path, body, unread: Vec::new() })
    }

    /// The next line; `None` where the sidecar ends its answer, as when another process takes over from it.
    ///
    /// # Errors
    /// The connection breaks or falls silent, or what comes is not a line of a live view.
    pub async fn next(&mut self) -> Result<Option<LiveUpdate>, ClientError> {
        let mut searched = 0;
        loop {
            let end = self.unread[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| searched + end) {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let update = serde_json::from_slice::<LiveUpdate>(&line);
                let mut update = update.map_err(|error| self.unexpected(format!("other JSON ({error})")))?;
                tame(&mut update, LINE_CHARS);
                return Ok(Some(update));
            }
            searched = self.unread.len();
            if searched > MAX_LINE_BYTES {
                return Err(self.unexpected(format!("a line of more than {MAX_LINE_BYTES} bytes")));
            }
            let silent = |_| ClientError::Timeout { daemon: self.daemon.clone(), limit: SILENCE };
            match timeout(SILENCE, self.body.frame()).await.map_err(silent)? {
                None => return Ok(None),
                Some(Ok(frame)) => self.unread.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(source)) => {
                    return Err(ClientError::Broken { daemon: self.daemon.clone(), source });
                }
            }
        }
    }

    /// As [`Self::next`], for a command that continues until it is interrupted: where the view ends, it is asked for again until
    /// it comes, with a word on stderr.
    pub async fn next_or_again(&mut self) -> LiveUpdate {
        loop {
            match self.next().await {
                Ok(Some(update)) => return update,
                // A newer process serves, or soon will.
                Ok(None) => sleep(RECONNECT).await,
                Err(error) => eprintln!("meshctl: {}; trying again", one_line(&error.to_string())),
            }
            loop {
                match self.daemon.follow(&self.path, HeaderMap::new()).await {
                    Ok(body) => {
                        self.body = body;
                        self.unread.clear();
                        break;
                    }
                    Err(error) => {
                        eprintln!("meshctl: {}; trying again", one_line(&error.to_string()));
                        sleep(RECONNECT).await;
                    }
                }
            }
        }
    }

    fn unexpected(&self, what: String) -> ClientError {
        self.daemon.unexpected(&self.path, what)
    }
}

/// Makes each text that other hosts chose one line that steers no terminal, of at most so many characters. Names have their
/// types.
pub fn tame(update: &mut LiveUpdate, max_chars: usize) {
    let tame = |text: &mut String| *text = Excerpt { text, max_chars }.to_string();
    let tame_exchange = |exchange: &mut LiveExchange| {
        let LiveExchange { peer, as_agent, method, path, trace_id, .. } = exchange;
        let optional = [peer, as_agent, trace_id].into_iter().filter_map(Option::as_mut);
        optional.chain([method, path]).for_each(tame);
    };
    tame(&mut update.version);
    update.in_flight.iter_mut().for_each(tame_exchange);
    for ended in &mut update.ended {
        let EndedExchange { exchange, outcome, code, reason, tries, .. } = ended;
        tame_exchange(exchange);
        tame(outcome);
        let errors = tries.iter_mut().filter_map(|tried| tried.error.as_mut());
        code.iter_mut().chain(reason).chain(errors).for_each(tame);
    }
    for Refusal { peer, cause, reason, .. } in &mut update.refused {
        peer.iter_mut().chain([cause, reason]).for_each(tame);
    }
}

/// What is said of a failed request in the help of the commands that tell of one ([`EndedExchange::failed`]).
macro_rules! failed_means {
    () => {
        "\
A request failed if a sidecar made its answer (it has a code), if the agent answered with status 500 or above, or if its answer
was cut by anyone but the caller. An agent's own 4xx and a caller that went away are not failures."
    };
}
pub(crate) use failed_means;

/// Who is at the other end: inbound the peer that calls, outbound the node that is called.
pub fn other_end(exchange: &LiveExchange) -> &str {
    exchange.peer.as_deref().or(exchange.node.as_ref().map(NodeName::as_str)).unwrap_or_default()
}

/// The agent that an exchange is for, or outbound, where it names none, the one that it is made as.
pub fn agent(exchange: &LiveExchange) -> &str {
    let agent = exchange.agent.as_ref().map(mesh_shared::AgentName::as_str);
    agent.or(exchange.as_agent.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_text_of_another_host_steers_the_terminal() {
        let bad = "x\u{1b}[2J\u{9b}31m\n\u{202e}y";
        let exchange = json!({
            "id": 1, "direction": "inbound", "peer": bad, "asAgent": bad, "method": bad, "path": bad, "traceId": bad,
            "beganMs": 1, "bytesIn": 0, "bytesOut": 0, "attempts": 0,
        });
        let mut ended = exchange.clone();
        for key in ["outcome", "code", "reason"] {
            ended[key] = bad.into();
        }
        ended["durationMs"] = 1.into();
        ended["tries"] = json!([{"node": "ct111", "error": bad}]);
        let update = json!({
            "atMs": 1, "node": "ct110", "version": bad, "inFlight": [exchange], "inFlightTotal": 1, "ended": [ended],
            "endedOmitted": 0,
            "refused": [{"id": 1, "atMs": 1, "address": "::1", "peer": bad, "cause": bad, "reason": bad}],
        });
        let mut update = serde_json::from_value(update).unwrap();
        tame(&mut update, LINE_CHARS);
        let told = serde_json::to_string(&update).unwrap();
        assert_eq!(told.matches("x [2J 31m  y").count(), 18, "{told}");
        assert!(told.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{told}");
    }
}
