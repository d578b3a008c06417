//! Serves the page and its data to browsers of this host, read-only.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dashboard::guard::{Access, Guard};
use crate::dashboard::view::View;

const MAX_CONNECTIONS: usize = 64;
/// Pages that are told what happens, at once.
const MAX_READERS: usize = 16;
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Between two attempts to accept where the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Where they go.
const STYLE_PLACE: &str = "/*STYLE*/";
const SCRIPT_PLACE: &str = "/*SCRIPT*/";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The dashboard's HTTP server.
pub struct Server {
    guard: Guard,
    view: Arc<View>,
    page: Bytes,
    policy: HeaderValue,
    connections: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl Server {
    /// A server that shows the view to those whom the guard admits.
    pub fn new(guard: Guard, view: Arc<View>) -> Self {
        let page = PAGE.replace(STYLE_PLACE, STYLE).replace(SCRIPT_PLACE, SCRIPT);
        let hash = |text: &str| {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
            format!("'sha256-{}'", STANDARD.encode(digest))
        };
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            hash(SCRIPT),
            hash(STYLE),
        );
        Self {
            guard,
            view,
            page: page.into(),
            // Hashes and keywords are valid in a header.
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'")),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> Infallible {
        loop {
            // The semaphore is never closed.
            let place = self.connections.clone().acquire_owned().await;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(move |request| {
                    let answer = server.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_LIMIT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let uri = request.uri();
        let mut answer = match self.guard.judge(request.method(), uri.path(), uri.query(), request.headers())
        {
            Access::Enter => self.enter(request),
            Access::Granted("") => whole(StatusCode::OK, "text/html; charset=utf-8", self.page.clone()),
            Access::Granted("events") => self.events(),
            Access::Granted(path) => self.look_up(path),
            Access::Refused(why) => text(StatusCode::FORBIDDEN, why),
            Access::NotReading => {
                let mut answer =
                    text(StatusCode::METHOD_NOT_ALLOWED, "The dashboard changes nothing: GET only.\n");
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                answer
            }
        };
        let fixed = |text| HeaderValue::from_static(text);
        let headers = answer.headers_mut();
        headers.entry(CONTENT_SECURITY_POLICY).or_insert_with(|| self.policy.clone());
        headers.insert(REFERRER_POLICY, fixed("no-referrer"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
        headers.insert(X_FRAME_OPTIONS, fixed("DENY"));
        headers.insert(CACHE_CONTROL, fixed("no-store"));
        headers.insert(HeaderName::from_static("cross-origin-resource-policy"), fixed("same-origin"));
        headers.insert(HeaderName::from_static("cross-origin-opener-policy"), fixed("same-origin"));
        answer
    }

    /// Moves the token from the URL to a cookie.
    fn enter(&self, request: &Request<Incoming>) -> Response<Body> {
        let page = self.guard.page();
        let site = request.headers().get("sec-fetch-site").map(|site| site.as_bytes());
        let mut answer = match site {
            None | Some(b"none" | b"same-origin") => {
                let mut answer = text(StatusCode::SEE_OTHER, "");
                if let Ok(page) = HeaderValue::try_from(page) {
                    answer.headers_mut().insert(LOCATION, page);
                }
                answer
            }
            // Browsers do not send a SameSite=Strict cookie with a redirect that another page, such as the opened file, has
            // led to. From a page of the dashboard they do.
            Some(_) => {
                let page = format!(
                    "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=\"0; url={page}\">\
                     <title>Mesh</title><p><a href=\"{page}\">Open the dashboard</a>"
                );
                whole(StatusCode::OK, "text/html; charset=utf-8", page.into())
            }
        };
        if let Ok(cookie) = HeaderValue::try_from(self.guard.cookie()) {
            answer.headers_mut().insert(SET_COOKIE, cookie);
        }
        answer
    }

    fn look_up(&self, path: &str) -> Response<Body> {
        let found = match path.split_once('/') {
            Some(("trace", id)) => self.view.with(|model, _| model.trace(id)),
            Some(("series", node)) => self.view.with(|model, now| model.series(node, now)),
            _ => return text(StatusCode::NOT_FOUND, "There is no such page.\n"),
        };
        whole(StatusCode::OK, "application/json", found.to_string().into())
    }

    fn events(&self) -> Response<Body> {
        let Ok(place) = self.readers.clone().try_acquire_owned() else {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "The dashboard is open in as many windows as it serves at once; close some of them.\n",
            );
        };
        let (first, news) = self.view.follow();
        let reader = Reader { view: self.view.clone(), first: Some(first), news, _place: place };
        let chunks = stream::unfold(reader, |mut reader| async {
            let chunk = reader.next().await?;
            Some((Ok(Frame::data(chunk)), reader))
        });
        let mut answer = Response::new(StreamBody::new(chunks).boxed_unsync());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        answer
    }
}

/// A page that is told what happens.
struct Reader {
    view: Arc<View>,
    first: Option<Bytes>,
    news: Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match self.news.recv().await {
            Ok(news) => Some(news),
            // It was too slow, and is told everything again.
            Err(RecvError::Lagged(_)) => {
                let (all, news) = self.view.follow();
                self.news = news;
                Some(all)
            }
            Err(RecvError::Closed) => None,
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    whole(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn whole(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut answer = Response::new(Full::new(body).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_place_for_each_part_and_takes_nothing_from_elsewhere() {
        assert!(PAGE.matches(STYLE_PLACE).count() == 1 && PAGE.matches(SCRIPT_PLACE).count() == 1);
        for text in [PAGE, STYLE, SCRIPT] {
            for word in
                ["https://", "//cdn", "@import", "innerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{word}");
            }
        }
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
    }
}
