//! The local socket: the only way in. HTTP/1.1 on a unix socket that the node's mesh group may open.
//!
//! Answers come from memory and never wait for the storage, except that a join and a change of status are
//! acknowledged once they are written.

mod answer;
mod join;
mod query;
mod stream;

use std::fs;
use std::io;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_shared::NodeName;
use mesh_shared::local_api::{self, AgentList, Forget, SidecarReport, StatusChange};
use mesh_shared::registry::Status;
use mesh_shared::unix_socket::{self, ListenError};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::backend::Backend;
use crate::connections::{Busy, Connections};
use crate::limits::{Limits, user_id};
use crate::span::Asked;
use crate::state::State;
use crate::state::problems::About;
use answer::{Answer, read_body, refusal};
use join::Gate;

/// Access: the owner and the group.
const MODE: u32 = 0o660;
/// How long a connection may take to send a request's header.
const HEADER_LIMIT: Duration = Duration::from_secs(15);
/// How long an answer waits for the storage.
const WRITE_LIMIT: Duration = Duration::from_secs(8);
/// How long `GET /mesh/nodes?wait=` waits; less than the sidecar's patience with this socket.
const WAIT_LIMIT: Duration = Duration::from_secs(8);
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
    #[error("{} exists and is not a socket; it is left alone. Move it away, or choose another registryd.socket", .0.display())]
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
    unix_socket::listen(path, MODE, None).map_err(|error| match error {
        ListenError::Io(source) => failed(source),
        ListenError::InUse => SocketError::InUse(path.into()),
        ListenError::NotASocket => SocketError::NoSocket(path.into()),
    })
}

/// What the answers are made from.
struct Api {
    state: Arc<State>,
    backend: Backend,
    gate: Gate,
    connections: Arc<Connections>,
    /// Places for answers that do not end soon.
    streams: Arc<Semaphore>,
    /// Users that may say who a peer is and change things.
    trusted: Vec<u32>,
}

/// Serves the socket for as long as the daemon runs.
pub async fn serve(listener: UnixListener, state: Arc<State>, backend: Backend, limits: Limits) {
    let user = &state.config.registryd.sidecar_user;
    let trusted = [0, rustix::process::geteuid().as_raw()].into_iter().chain(user_id(user)).collect();
    let api = Arc::new(Api {
        state,
        backend,
        gate: Gate::new(),
        connections: Connections::new(limits.socket),
        streams: Arc::new(Semaphore::new(limits.streams)),
        trusted,
    });
    let mut refused = 0_u64;
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
        let Some(place) = api.connections.place() else {
            refused += 1;
            if refused.is_power_of_two() {
                tracing::warn!(
                    target: "Socket",
                    "{refused} connections were closed unread: all {} slots are in use by requests under way",
                    limits.socket
                );
            }
            continue;
        };
        let user = stream.peer_cred().ok().map(|peer| peer.uid());
        let api = api.clone();
        tokio::spawn(async move {
            let kept = place.clone();
            let service = service_fn(move |request| {
                let (api, busy) = (api.clone(), kept.busy());
                async move {
                    let (head, mut body) = request.into_parts();
                    let asked = Asked::of(&head);
                    let answer = api.answer(&head, &mut body, user).await;
                    if let Some(asked) = asked {
                        asked.answered(&head, answer.status());
                    }
                    if !body.is_end_stream() && !api.connections.are_scarce() {
                        // Closed with something unread, the connection would be reset and the answer lost.
                        tokio::spawn(drain(body));
                    }
                    // The place is kept until the answer was sent.
                    Ok::<_, std::convert::Infallible>(answer::keeping(answer, busy))
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(32 * 1024);
            // A client that goes away in the middle is nobody's error.
            tokio::select! {
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
                () = place.taken() => {}
            }
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

impl Api {
    async fn answer(&self, head: &Parts, body: &mut Incoming, user: Option<u32>) -> Answer {
        let (path, state) = (head.uri.path(), &self.state);
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let (peer, speaks_for_a_peer) =
            (text(local_api::PEER_CN), head.headers.contains_key(local_api::PEER_CN));
        let trusted = user.is_some_and(|user| self.trusted.contains(&user));
        if let (false, local_api::SIDECAR, Some(user)) = (trusted, path, user) {
            let sentence = format!(
                "a program of user {user} reports as this host's mesh-proxy and is not believed; if it is, name its user in \
                 registryd.sidecar_user"
            );
            state.problem(About::Sidecar, sentence);
        }
        if !trusted && (speaks_for_a_peer || head.method != Method::GET) {
            let detail = format!(
                "this user may read on this socket and nothing else; only root, registryd's own user and the sidecar's \
                 ({}, see registryd.sidecar_user) may speak for peers or change anything",
                state.config.registryd.sidecar_user
            );
            return refusal(403, "not_the_sidecar", detail);
        }
        let for_peers = matches!(path, local_api::MESH | local_api::JOIN | local_api::AGENTS);
        if speaks_for_a_peer && !for_peers {
            let detail = format!("{path} is for this host's own programs, not for peers");
            return refusal(403, "peer_not_allowed", detail);
        }
        match (&head.method, path) {
            (&Method::GET, local_api::ROSTER_WATCH) => {
                // The sidecar's own place is never taken by others' streams.
                let permit = (!trusted).then(|| self.streams.clone().try_acquire_owned());
                match permit.transpose() {
                    Ok(permit) => {
                        let since = stream::roster_revision(head.uri.query().unwrap_or_default());
                        stream::rosters(state, since, trusted.then(|| state.follower()), permit)
                    }
                    Err(_) => too_many_streams(),
                }
            }
            (&Method::PUT, local_api::SIDECAR) => match read_body::<SidecarReport>(body, SMALL_BODY).await {
                Ok(report) => {
                    state.sidecar_reported(report);
                    answer::no_content()
                }
                Err(refusal) => refusal,
            },
            (&Method::GET, local_api::STATUS) => answer::json(&query::daemon_status(state)),
            (&Method::PUT, local_api::STATUS) => match read_body::<StatusChange>(body, SMALL_BODY).await {
                Ok(change) => set_status(change.status, state, &self.backend).await,
                Err(refusal) => refusal,
            },
            (&Method::GET, local_api::MESH) => answer::json(&query::registry_nodes(state)),
            (&Method::POST, local_api::JOIN) => {
                join::answer(body, peer, &self.gate, state, &self.backend).await
            }
            (&Method::GET, local_api::AGENTS) => {
                answer::json(&AgentList { agents: state.published().agents.clone() })
            }
            (&Method::GET, local_api::NODES) => self.nodes(head.uri.query().unwrap_or_default()).await,
            (&Method::POST, local_api::FORGET) => match read_body::<Forget>(body, SMALL_BODY).await {
                Ok(forget) => self.forget(forget.node).await,
                Err(refusal) => refusal,
            },
            (&Method::GET, local_api::ROSTER_AGENTS) => answer::json(&query::agents(state)),
            (&Method::GET, local_api::EVENTS) => {
                // An id that is none of ours is as good as one that is too old. An empty one means none.
                let last_id = text("last-event-id").map(str::trim).filter(|id| !id.is_empty());
                let last_id = last_id.map(|id| id.parse().unwrap_or(0));
                match self.streams.clone().try_acquire_owned() {
                    Ok(permit) => stream::events(state, last_id, permit),
                    Err(_) => too_many_streams(),
                }
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
                | local_api::FORGET
                | local_api::ROSTER_AGENTS
                | local_api::EVENTS
                | "/metrics",
            ) => refusal(405, "method_not_allowed", format!("{} is not possible on {path}", head.method)),
            _ => refusal(404, "not_found", format!("registryd answers nothing at {path}")),
        }
    }

    /// The nodes that the filters leave; with `wait`, once the mesh differs from that revision, or after a while.
    async fn nodes(&self, query: &str) -> Answer {
        let query = match query::NodeQuery::parse(query) {
            Ok(query) => query,
            Err(unknown) => return refusal(400, "bad_request", unknown),
        };
        let mut views = self.state.views();
        if let Some(known) = query.wait {
            let Ok(_permit) = self.streams.clone().try_acquire_owned() else { return too_many_streams() };
            // The state lives as long as the daemon does.
            let _ = timeout(WAIT_LIMIT, views.wait_for(|view| view.revision != known)).await;
        }
        let revision = views.borrow().revision;
        let mut answer = answer::json(&query.nodes(&self.state));
        answer.headers_mut().insert(local_api::REVISION, revision.into());
        answer
    }

    async fn forget(&self, node: NodeName) -> Answer {
        let status =
            self.state.read(|inner, _| inner.members.members().get(&node).map(|member| member.status));
        match status {
            _ if node == *self.state.local() => refusal(
                409,
                "node_is_local",
                format!("{node} is this node; it cannot be forgotten while it runs"),
            ),
            None => refusal(404, "unknown_node", format!("{node} is not in the registry")),
            Some(Status::Offline) => {
                let forgotten = timeout(WRITE_LIMIT, self.backend.forget(vec![node.clone()])).await;
                match forgotten.unwrap_or_else(|_| Err("the storage does not answer".into())) {
                    Ok(()) => answer::no_content(),
                    Err(error) => {
                        refusal(503, "registry_unavailable", format!("{node} is not forgotten yet: {error}"))
                    }
                }
            }
            Some(status) => {
                let status = status.as_str();
                let detail =
                    format!("{node} is {status} and would come back with its next heartbeat; stop it first");
                refusal(409, "node_not_offline", detail)
            }
        }
    }
}

/// What the metrics listener answers: `asked` is whether it was asked with GET, and for the right path.
pub(crate) fn metrics_answer(state: &State, asked: (bool, bool), busy: Busy) -> Answer {
    let answer = match asked {
        (true, true) => answer::text(query::metrics(state)),
        (_, false) => refusal(404, "not_found", "there is only /metrics here".into()),
        (false, true) => refusal(405, "method_not_allowed", "/metrics is only read".into()),
    };
    answer::keeping(answer, busy)
}

fn too_many_streams() -> Answer {
    let detail = "too many programs of this host follow the mesh at once; close some of their streams";
    let mut answer = refusal(503, "too_many_streams", detail.into());
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    answer
}

async fn set_status(status: Status, state: &State, backend: &Backend) -> Answer {
    if !matches!(status, Status::Online | Status::Updating) {
        let detail =
            format!("a status can be set to online or updating; {} follows by itself", status.as_str());
        return refusal(400, "bad_request", detail);
    }
    state.set_updating(status == Status::Updating);
    tracing::info!(target: "Registry", "the operator sets this node's status status={}", status.as_str());
    // Storage that does not answer is a problem that is shown elsewhere; the change is made and will be written.
    let _ = tokio::time::timeout(WRITE_LIMIT, backend.publish(false)).await;
    answer::no_content()
}
