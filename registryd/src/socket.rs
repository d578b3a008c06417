//! The local socket: the only way in. HTTP/1.1 on a unix socket that the node's mesh group may open.
//!
//! Answers come from memory and never wait for the storage, except that a join and a change of status are
//! acknowledged once they are written.

mod answer;
mod join;
mod query;
mod stream;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_shared::local_api::{self, AgentList, SidecarReport, StatusChange};
use mesh_shared::registry::Status;
use tokio::net::UnixListener;

use crate::state::State;
use crate::store::worker::Writer;
use answer::{Answer, read_body, refusal};

/// Access: the owner and the group.
const MODE: u32 = 0o660;
/// How long a connection may take to send a request's header.
const HEADER_LIMIT: Duration = Duration::from_secs(30);
/// How long an answer waits for the storage.
const WRITE_LIMIT: Duration = Duration::from_secs(8);
/// How much of a body that nobody wants is read, in bytes and time, so that its sender gets to read the refusal.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Largest body of `mesh-proxy`'s and `meshctl`'s own requests, in bytes.
const SMALL_BODY: usize = 64 * 1024;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum SocketError {
    #[error(
        "cannot serve the socket {}: {source} (choose another one with registryd.socket, or give this user the folder)",
        path.display()
    )]
    Io { path: PathBuf, source: io::Error },
    #[error("the socket {} is served by a registryd that runs; end that one first, or choose another registryd.socket", .0.display())]
    InUse(PathBuf),
    #[error("{} exists and is no socket; it is left alone. Move it away, or choose another registryd.socket", .0.display())]
    NoSocket(PathBuf),
}

/// Opens the socket, replacing what a killed process left behind. Blocks, so it belongs before the runtime.
///
/// # Errors
/// A live registryd on it, something else of that name, or no access.
pub fn bind(path: &Path) -> Result<net::UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.into(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => return Err(SocketError::NoSocket(path.into())),
        Ok(_) => match net::UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.into())),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(failed(error)),
            Err(_) => fs::remove_file(path).map_err(failed)?,
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = net::UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
    Ok(listener)
}

/// Serves the socket for as long as the daemon runs.
pub async fn serve(listener: UnixListener, state: Arc<State>, writer: Writer) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely; the connections that end give some back.
                tracing::warn!(target: "Socket", "cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (state, writer) = (state.clone(), writer.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (state, writer) = (state.clone(), writer.clone());
                async move {
                    let (head, mut body) = request.into_parts();
                    let answer = route(&head, &mut body, &state, &writer).await;
                    if !body.is_end_stream() {
                        // Closed with something unread, the connection would be reset and the answer lost.
                        tokio::spawn(drain(body));
                    }
                    Ok::<_, std::convert::Infallible>(answer)
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(32 * 1024);
            // A client that goes away in the middle is nobody's error.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn drain(mut body: Incoming) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DRAIN_BYTES {
                return;
            }
        }
    };
    // Too much or too slow: then the sender has to do without the answer.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

async fn route(head: &Parts, body: &mut Incoming, state: &Arc<State>, writer: &Writer) -> Answer {
    let path = head.uri.path();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let peer = text(local_api::PEER_CN);
    let for_peers = matches!(path, local_api::MESH | local_api::JOIN | local_api::AGENTS);
    if head.headers.contains_key(local_api::PEER_CN) && !for_peers {
        return refusal(
            403,
            "peer_not_allowed",
            format!("{path} is for this host's own programs, not for peers"),
        );
    }
    match (&head.method, path) {
        (&Method::GET, local_api::ROSTER_WATCH) => stream::rosters(state),
        (&Method::PUT, local_api::SIDECAR) => match read_body::<SidecarReport>(body, SMALL_BODY).await {
            Ok(report) => {
                state.sidecar_reported(report);
                answer::no_content()
            }
            Err(refusal) => refusal,
        },
        (&Method::GET, local_api::STATUS) => answer::json(&query::daemon_status(state)),
        (&Method::PUT, local_api::STATUS) => match read_body::<StatusChange>(body, SMALL_BODY).await {
            Ok(change) => set_status(change.status, state, writer).await,
            Err(refusal) => refusal,
        },
        (&Method::GET, local_api::MESH) => answer::json(&query::registry_nodes(state)),
        (&Method::POST, local_api::JOIN) => join::answer(body, peer, state, writer).await,
        (&Method::GET, local_api::AGENTS) => {
            answer::json(&AgentList { agents: state.config.registryd.agents.clone() })
        }
        (&Method::GET, local_api::NODES) => match query::nodes(state, head.uri.query().unwrap_or_default()) {
            Ok(nodes) => answer::json(&nodes),
            Err(unknown) => refusal(400, "bad_request", unknown),
        },
        (&Method::GET, local_api::ROSTER_AGENTS) => answer::json(&query::agents(state)),
        (&Method::GET, local_api::EVENTS) => {
            // An id that is none of ours is as good as one that is too old. An empty one means none.
            let last_id = text("last-event-id").map(str::trim).filter(|id| !id.is_empty());
            let last_id = last_id.map(|id| id.parse().unwrap_or(0));
            stream::events(state, last_id)
        }
        (&Method::GET, "/metrics") => answer::text(query::metrics(state)),
        (
            _,
            local_api::ROSTER_WATCH
            | local_api::SIDECAR
            | local_api::STATUS
            | local_api::MESH
            | local_api::JOIN
            | local_api::AGENTS
            | local_api::NODES
            | local_api::ROSTER_AGENTS
            | local_api::EVENTS
            | "/metrics",
        ) => refusal(405, "method_not_allowed", format!("{} is not possible on {path}", head.method)),
        _ => refusal(404, "not_found", format!("registryd answers nothing at {path}")),
    }
}

async fn set_status(status: Status, state: &State, writer: &Writer) -> Answer {
    if !matches!(status, Status::Online | Status::Updating) {
        let detail =
            format!("a status can be set to online or updating; {} follows by itself", status.as_str());
        return refusal(400, "bad_request", detail);
    }
    state.set_updating(status == Status::Updating);
    tracing::info!(target: "Registry", "the operator sets this node's status status={}", status.as_str());
    // Storage that does not answer is a problem that is shown elsewhere; the change is made and will be written.
    let _ = tokio::time::timeout(WRITE_LIMIT, writer.write(false)).await;
    answer::no_content()
}
