//! The CA's process as the sidecar of its host sees it: a unix socket that renews certificates and publishes the bundle.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_shared::enrolment::{BUNDLE_PATH, Bundle, RENEW_PATH, RenewalRequest, Renewed};
use mesh_shared::local_api::{PEER_CN, Problem};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::ca::Ca;
use crate::web::{self, Body, BoxError};

const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// How it answers a request to renew.
#[derive(Debug, Clone, Default)]
pub enum Answers {
    /// As a good CA does.
    #[default]
    Well,
    /// With this problem.
    Problem(u16, &'static str),
    /// With the certificate of this PEM text, whatever was asked for.
    Certificate(String),
}

/// What it publishes, and how it answers.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// How it answers.
    pub answers: Answers,
    /// `ca-chain.pem`.
    pub chain: String,
    /// `crl.pem`.
    pub crl: String,
}

/// A running one.
pub struct FakeCa {
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl FakeCa {
    /// Listens on `socket` and issues as `ca` does.
    pub fn start(socket: &Path, ca: Arc<Ca>) -> Self {
        let chain = ca.bundle_pem();
        let behaviour = Arc::new(Mutex::new(Behaviour { chain, ..Behaviour::default() }));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        // Of one that ran before.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let task = tokio::spawn({
            let (behaviour, asked) = (behaviour.clone(), asked.clone());
            async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let (behaviour, asked, ca) = (behaviour.clone(), asked.clone(), ca.clone());
                    tokio::spawn(async move {
                        let service = service_fn(|request| {
                            answer(request, ca.clone(), behaviour.clone(), asked.clone())
                        });
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            }
        });
        Self { behaviour, asked, task }
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// Who asked to renew so far, as the sidecar says.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeCa {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    ca: Arc<Ca>,
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Body>, BoxError> {
    let Behaviour { answers, chain, crl } = behaviour.lock().unwrap().clone();
    let json = |value: Vec<u8>| {
        Response::builder().header("content-type", "application/json").body(web::full(value))
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, BUNDLE_PATH) => {
            let tag = format!("\"{:x}\"", chain.len() * 1_000_003 + crl.len());
            if request.headers().get("if-none-match").is_some_and(|known| *known == *tag) {
                return Ok(Response::builder().status(304).body(web::empty())?);
            }
            let mut response = json(serde_json::to_vec(&Bundle { chain, crl })?)?;
            response.headers_mut().insert("etag", tag.parse()?);
            Ok(response)
        }
        (&Method::POST, RENEW_PATH) => {
            let peers: Vec<_> = request.headers().get_all(PEER_CN).iter().cloned().collect();
            let [peer] = peers.as_slice() else { panic!("the sidecar says who asks, once: {peers:?}") };
            asked.lock().unwrap().push(peer.to_str()?.to_owned());
            let body = request.into_body().collect().await?.to_bytes();
            let wanted: RenewalRequest = serde_json::from_slice(&body)?;
            let certificate = match answers {
                Answers::Well => ca.sign_request(&wanted.csr, WEEK),
                Answers::Certificate(pem) => pem,
                Answers::Problem(status, code) => {
                    let problem =
                        Problem::new(code, status, "Not renewed", "as the test wants it".to_owned());
                    let mut response = json(serde_json::to_vec(&problem)?)?;
                    *response.status_mut() = status.try_into()?;
                    return Ok(response);
                }
            };
            Ok(json(serde_json::to_vec(&Renewed { certificate, chain, crl })?)?)
        }
        _ => Ok(Response::builder().status(404).body(web::empty())?),
    }
}
