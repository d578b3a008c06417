//! What registryd records of its work, where traces are recorded.

use std::time::Instant;

use http::StatusCode;
use http::request::Parts;
use mesh_shared::config::StoreKind;
use mesh_shared::local_api;
use mesh_telemetry::{KeyValue, Recorder, Span, SpanKind, TraceContext, recorder};

/// A request on the socket that belongs to a trace which is recorded; what the sidecar passes on does.
pub struct Asked {
    context: TraceContext,
    recorder: &'static Recorder,
    begun: Instant,
}

impl Asked {
    /// `None`: nothing of it is recorded.
    pub fn of(head: &Parts) -> Option<Self> {
        let recorder = recorder()?;
        let context = TraceContext::of_caller(&head.headers, Some(recorder.sampler()))?;
        context.recorded.then(|| Self { context, recorder, begun: Instant::now() })
    }

    /// Records it with the status of its answer.
    pub fn answered(self, head: &Parts, status: StatusCode) {
        let (method, route) = (known_method(head), known_path(head.uri.path()));
        let mut attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
            KeyValue::new("network.transport", "unix"),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        let peer = head.headers.get(local_api::PEER_CN).and_then(|peer| peer.to_str().ok());
        attributes.extend(peer.map(|peer| KeyValue::new("mesh.peer", peer.to_owned())));
        let error = status.is_server_error().then(|| status.as_str().to_owned());
        attributes.extend(error.iter().map(|error| KeyValue::new("error.type", error.clone())));
        self.recorder.record(Span {
            context: self.context,
            kind: SpanKind::Server,
            name: route.map_or(method.into(), |route| format!("{method} {route}").into()),
            took: self.begun.elapsed(),
            attributes,
            error,
        });
    }
}

/// Records an update of the registry that was wanted at `begun`: a trace of its own. `beat`: whether a heartbeat was due.
pub fn published(begun: Instant, store: StoreKind, beat: bool, failure: Option<String>) {
    let Some(recorder) = recorder() else { return };
    let store = match store {
        StoreKind::File => "file",
        StoreKind::Etcd => "etcd",
    };
    let mut attributes = vec![KeyValue::new("mesh.store", store), KeyValue::new("mesh.heartbeat", beat)];
    if failure.is_some() {
        attributes.push(KeyValue::new("error.type", "registry_unavailable"));
    }
    recorder.record(Span {
        context: TraceContext::begin(Some(recorder.sampler())),
        kind: SpanKind::Internal,
        name: "registry update".into(),
        took: begun.elapsed(),
        attributes,
        error: failure,
    });
}

fn known_method(head: &Parts) -> &'static str {
    match head.method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        _ => "_OTHER",
    }
}

fn known_path(path: &str) -> Option<&'static str> {
    let known = [
        local_api::MESH,
        local_api::JOIN,
        local_api::AGENTS,
        local_api::NODES,
        local_api::ROSTER_AGENTS,
        local_api::EVENTS,
    ];
    known.into_iter().find(|each| *each == path)
}
