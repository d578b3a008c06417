//! The side of the host that joins: its key, its request, and the exchange with the CA's process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_shared::certificate::{Role, describe};
use mesh_shared::enrolment::{ENROL_PATH, EnrolRequest, Enrolled, MAX_BODY_BYTES};
use mesh_shared::local_api::Problem;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::tls::{ENROLMENT_NAME, client_config};
use crate::token::{Address, Token};

/// How long each address may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the handshake and the answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Why a host could not enrol.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it, and the fields are its parts
pub enum ClientError {
    #[error(
        "cannot reach the CA's process ({}); is it running (systemctl status mesh-ca, there), and does a firewall let \
         its port through?", tried.join("; ")
    )]
    Unreachable { tried: Vec<String> },
    #[error("{address} is not the CA that the token names: {reason}. Do not go on before you know why")]
    Impostor { address: Address, reason: String },
    #[error(
        "{address} refused the token. It may have ended, been used already, or be for another name; the log there says \
         which (journalctl -u mesh-ca). `meshctl invite` on that host makes a new one"
    )]
    Refused { address: Address },
    #[error("{address}: {detail}")]
    Failed { address: Address, detail: String },
}

/// Presents the token and the request to the CA's process, at the token's addresses one after the other.
///
/// # Errors
/// None of them can be reached, the first that can is not the CA that the token names, or it refuses.
pub async fn enrol(token: &Token, csr: &str) -> Result<Enrolled, ClientError> {
    let mut tried = Vec::new();
    for address in &token.addresses {
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        match timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(stream)) => {
                let exchange = timeout(ANSWER_LIMIT, exchange(token, csr, address, stream));
                return exchange.await.unwrap_or_else(|_| {
                    let detail = format!("no answer within {} s", ANSWER_LIMIT.as_secs());
                    Err(ClientError::Failed { address: address.clone(), detail })
                });
            }
            Ok(Err(error)) => tried.push(format!("{address}: {error}")),
            Err(_) => tried.push(format!("{address}: no answer within {} s", CONNECT_LIMIT.as_secs())),
        }
    }
    Err(ClientError::Unreachable { tried })
}

async fn exchange(
    token: &Token,
    csr: &str,
    address: &Address,
    stream: TcpStream,
) -> Result<Enrolled, ClientError> {
    let failed = |detail: String| ClientError::Failed { address: address.clone(), detail };
    let config = client_config(token.root).map_err(|error| failed(error.to_string()))?;
    let name = ServerName::try_from(ENROLMENT_NAME).map_err(|error| failed(error.to_string()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = connected.map_err(|error| handshake_error(address, &error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    tokio::spawn(connection);
    let body = EnrolRequest { secret: token.secret.to_text().to_string(), csr: csr.into() };
    let body = serde_json::to_vec(&body).map_err(|error| failed(error.to_string()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(ENROL_PATH)
        .header(HOST, ENROLMENT_NAME)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|error| {
        failed(format!("the connection broke before the answer ({error}); run the command again"))
    })?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
    let body =
        body.map_err(|error| failed(format!("the answer broke off ({error}); run the command again")))?;
    let body = body.to_bytes();
    match status {
        StatusCode::OK => serde_json::from_slice(&body)
            .map_err(|error| failed(format!("an answer of another form ({error})"))),
        StatusCode::FORBIDDEN => Err(ClientError::Refused { address: address.clone() }),
        status => {
            let problem = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail);
            Err(failed(problem.unwrap_or_else(|_| format!("answered {status}"))))
        }
    }
}

/// Why a handshake failed: the other side is not the CA, or there is no connection.
fn handshake_error(address: &Address, error: &io::Error) -> ClientError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let reason = match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its certificate is not from that CA".into()
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "it shows the certificate of a member of the mesh".into()
        }
        Some(error @ rustls::Error::InvalidCertificate(_)) => {
            format!("its {}", describe(error, Role::Server))
        }
        _ => {
            let detail = format!("no TLS connection ({error})");
            return ClientError::Failed { address: address.clone(), detail };
        }
    };
    ClientError::Impostor { address: address.clone(), reason }
}
