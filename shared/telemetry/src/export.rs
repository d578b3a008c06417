//! Sends spans to the collector, from a task of its own.

use std::time::Duration;

use mesh_shared::config::{Otlp, Telemetry};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::client::{Client, ClientError};
use crate::context::Sampler;
use crate::recorder::{Recorder, count_dropped, count_exported};

/// Most spans in one request to the collector.
const BATCH: usize = 512;
/// How long a span waits for others to go along with.
const PAUSE: Duration = Duration::from_secs(1);
/// How often files that cannot be used are read again.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// Spans are on their way to the collector until [`Exporting::finish`].
#[derive(Debug)]
#[must_use = "the last spans are sent by finish"]
pub struct Exporting(Option<(oneshot::Sender<Instant>, JoinHandle<()>)>);

/// Starts to send the spans of a daemon of `node`, where a collector is configured; has to be called inside a runtime.
pub fn start(config: &Telemetry, daemon: &'static str, version: &'static str, node: &str) -> Exporting {
    let Some(otlp) = config.otlp.clone() else { return Exporting(None) };
    let (sender, queue) = mpsc::channel(otlp.max_queue);
    Recorder::install(sender, Sampler::new(otlp.sample_ratio), daemon, version);
    let resource = Resource::builder()
        .with_attributes([
            KeyValue::new("service.name", daemon),
            KeyValue::new("service.namespace", "mesh"),
            KeyValue::new("service.instance.id", node.to_owned()),
            KeyValue::new("service.version", version),
            KeyValue::new("mesh.node", node.to_owned()),
        ])
        .build();
    let (stop, stopped) = oneshot::channel();
    tracing::info!(target: "Telemetry", "traces go to {}", otlp.endpoint.traces_url());
    Exporting(Some((stop, tokio::spawn(run(otlp, resource, queue, stopped)))))
}

impl Exporting {
    /// Sends what is still to be sent, for at most `limit`.
    pub async fn finish(self, limit: Duration) {
        let Some((stop, task)) = self.0 else { return };
        // Fails only if the task has ended, which it does when it is told to.
        let _ = stop.send(Instant::now() + limit);
        let _ = timeout(limit + PAUSE, task).await;
    }
}

async fn run(
    otlp: Otlp,
    resource: Resource,
    mut queue: mpsc::Receiver<SpanData>,
    mut stopped: oneshot::Receiver<Instant>,
) {
    let (mut batch, mut end) = (Vec::with_capacity(BATCH), None);
    let exporter = tokio::select! {
        exporter = exporter(&otlp, &resource) => Some(exporter),
        _ = &mut stopped => None,
    };
    while let Some(exporter) = &exporter
        && end.is_none()
    {
        tokio::select! {
            biased;
            until = &mut stopped => end = Some(until.unwrap_or_else(|_| Instant::now())),
            _ = gather(&mut queue, &mut batch) => {}
        }
        if end.is_none() {
            let spans = batch.len();
            let sending = exporter.export(std::mem::take(&mut batch));
            tokio::pin!(sending);
            let taken = tokio::select! {
                taken = &mut sending => taken.is_ok(),
                until = &mut stopped => {
                    let until = until.unwrap_or_else(|_| Instant::now());
                    end = Some(until);
                    timeout_at(until, sending).await.is_ok_and(|taken| taken.is_ok())
                }
            };
            count(spans, taken);
        }
    }
    queue.close();
    loop {
        while batch.len() < BATCH
            && let Ok(span) = queue.try_recv()
        {
            batch.push(span);
        }
        if batch.is_empty() {
            return;
        }
        let spans = batch.len();
        let taken = match (&exporter, end) {
            (Some(exporter), Some(end)) => {
                let sending = timeout_at(end, exporter.export(std::mem::take(&mut batch)));
                sending.await.is_ok_and(|taken| taken.is_ok())
            }
            _ => false,
        };
        batch.clear();
        count(spans, taken);
    }
}

fn count(spans: usize, taken: bool) {
    match taken {
        true => count_exported(spans),
        false => count_dropped(spans),
    }
}

/// Waits for a span, and a moment for others.
async fn gather(queue: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if batch.is_empty() {
        queue.recv_many(batch, BATCH).await;
    }
    let until = Instant::now() + PAUSE;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        match timeout_at(until, queue.recv_many(batch, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// What knows how to speak to the collector, once the files that it needs can be read.
async fn exporter(otlp: &Otlp, resource: &Resource) -> opentelemetry_otlp::SpanExporter {
    let mut told = String::new();
    loop {
        let config = otlp.clone();
        // They may be on a mount that hangs.
        let client = tokio::task::spawn_blocking(move || Client::new(&config)).await;
        let client = client.unwrap_or_else(|_| Err(ClientError::Unread));
        match client.map_err(|error| error.to_string()).and_then(|client| build(otlp, resource, client)) {
            Ok(exporter) => return exporter,
            Err(error) => {
                if error != told {
                    tracing::error!(target: "Telemetry", "no traces are sent: {error}");
                    told = error;
                }
                sleep(READ_AGAIN).await;
            }
        }
    }
}

fn build(
    otlp: &Otlp,
    resource: &Resource,
    client: Client,
) -> Result<opentelemetry_otlp::SpanExporter, String> {
    let built = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(otlp.endpoint.traces_url())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(otlp.timeout)
        .with_http_client(client)
        // The client tries again, without holding up a thread.
        .with_retry_policy(RetryPolicy::disabled())
        .build();
    let mut exporter = built.map_err(|error| error.to_string())?;
    exporter.set_resource(resource);
    Ok(exporter)
}
