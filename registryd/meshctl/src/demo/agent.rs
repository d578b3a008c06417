//! The demo's agents: plain HTTP on loopback, no TLS, no certificate, no knowledge of the mesh beyond a port.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_shared::local_api::PEER_CN;
use mesh_shared::message::{MessageRequest, MessageResponse};
use mesh_shared::name::AgentName;
use tokio::net::TcpListener;

use crate::Failure;
use crate::output::print;
use mesh_client::Daemon;

const MAX_BODY_BYTES: usize = 10 << 20;
/// The longest that an agent thinks, and the longest story, in words.
const MAX_THINKING_MS: u64 = 5_000;
const MAX_WORDS: u64 = 200;
/// Between two words of a story.
const WORD: Duration = Duration::from_millis(500);
/// Of the trace that a request belongs to (W3C Trace Context); an agent passes it on to what it asks others.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Arguments of the hidden `meshctl demo-agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// The agent's name
    #[arg(long)]
    name: AgentName,
    /// Where it listens
    #[arg(long)]
    listen: SocketAddr,
    /// The sidecar's outbound side
    #[arg(long)]
    outbound: SocketAddr,
}

/// Serves until killed.
///
/// # Errors
/// The address is not available.
pub async fn run(args: AgentArgs) -> Result<ExitCode, Failure> {
    let listener = TcpListener::bind(args.listen).await?;
    print(&format!("agent {} listens on {}\n", args.name, args.listen))?;
    let agent = Arc::new(args);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let agent = agent.clone();
                async move { Ok::<_, Infallible>(answer(&agent, request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(agent: &AgentArgs, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if (request.method(), path) == (&Method::POST, "/api/message") {
        return take_task(agent, request).await;
    }
    let number = |prefix| path.strip_prefix(prefix).and_then(|rest| rest.parse::<u64>().ok());
    let text = "text/plain; charset=utf-8";
    if let Some(ms) = number("/api/think/") {
        tokio::time::sleep(Duration::from_millis(ms.min(MAX_THINKING_MS))).await;
        return reply(StatusCode::OK, text, format!("{} has thought about it\n", agent.name));
    }
    if let Some(words) = number("/api/story/") {
        return story(words.min(MAX_WORDS));
    }
    if path == "/api/flaky" {
        return reply(
            StatusCode::INTERNAL_SERVER_ERROR,
            text,
            format!("{} cannot do that today\n", agent.name),
        );
    }
    let told = format!("I am {}; POST a MessageRequest to /api/message\n", agent.name);
    reply(StatusCode::NOT_FOUND, text, told)
}

/// Server-sent events, as models stream their answers.
fn story(words: u64) -> Response<Body> {
    let words = stream::unfold(0, move |told| async move {
        if told == words {
            return None;
        }
        tokio::time::sleep(if told == 0 { Duration::ZERO } else { WORD }).await;
        Some((Ok(Frame::data(Bytes::from(format!("data: {{\"word\":{told}}}\n\n")))), told + 1))
    });
    let mut response = Response::new(StreamBody::new(words).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

async fn take_task(agent: &AgentArgs, request: Request<Incoming>) -> Response<Body> {
    let start = Instant::now();
    let peer = request.headers().get(PEER_CN).and_then(|cn| cn.to_str().ok()).map(str::to_owned);
    let trace = request.headers().get(TRACEPARENT).cloned();
    let body = match Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return reply(StatusCode::BAD_REQUEST, "text/plain", format!("{error}\n")),
    };
    let message: MessageRequest = match serde_json::from_slice(&body) {
        Ok(message) => message,
        Err(error) => {
            return reply(StatusCode::BAD_REQUEST, "text/plain", format!("no MessageRequest: {error}\n"));
        }
    };
    let from = peer.as_deref().unwrap_or("this host");
    // The log is for the demo's reader; losing a line of it loses nothing.
    let _ = print(&format!("from {} on {from}: {:?}\n", message.from_agent, message.message));
    let delegated = message.message.strip_prefix('@').and_then(|rest| rest.split_once(' '));
    let response = match delegated {
        Some((to, task)) => match delegate(agent, to, task, &message, trace).await {
            Ok(answer) => answer,
            Err(error) => {
                return reply(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", format!("{error}\n"));
            }
        },
        None => MessageResponse {
            response: format!(
                "{} here. You are {} on {from}, says my sidecar. Your task has {} characters: consider it done.",
                agent.name,
                message.from_agent,
                message.message.chars().count(),
            ),
            agent: agent.name.to_string(),
            duration_ms: 0,
        },
    };
    let response = MessageResponse { duration_ms: start.elapsed().as_millis() as u64, ..response };
    reply(StatusCode::OK, "application/json", serde_json::to_string(&response).unwrap_or_default())
}

/// Everything an agent must do to reach another one: POST to a port of its own host.
async fn delegate(
    agent: &AgentArgs,
    to: &str,
    task: &str,
    request: &MessageRequest,
    trace: Option<HeaderValue>,
) -> Result<MessageResponse, Failure> {
    let task = MessageRequest {
        from_agent: agent.name.to_string(),
        message: task.into(),
        wait_for_response: Some(true),
        chain_depth: Some(request.chain_depth.unwrap_or(0) + 1),
        ..MessageRequest::default()
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT, trace);
    }
    let body = serde_json::to_vec(&task).map_err(io::Error::other)?;
    let path = format!("/agents/{to}/api/message");
    let sidecar = Daemon::Sidecar(agent.outbound);
    let answer = sidecar.send(Method::POST, &path, headers, body.into()).await?;
    let answer = sidecar.accepted(&path, answer)?;
    Ok(serde_json::from_slice(&answer.body).map_err(io::Error::other)?)
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
