//! Takes spans, wherever in the process they end.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

use crate::context::{Sampler, SpanId, TraceContext};

static RECORDER: OnceLock<Recorder> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
static EXPORTED: AtomicU64 = AtomicU64::new(0);

/// The recorder of this process; `None`: nothing is recorded.
pub fn recorder() -> Option<&'static Recorder> {
    RECORDER.get()
}

/// Spans that were dropped because the collector did not take them, or not fast enough.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Spans that the collector took.
pub fn exported() -> u64 {
    EXPORTED.load(Ordering::Relaxed)
}

pub(crate) fn count_dropped(spans: usize) {
    DROPPED.fetch_add(spans as u64, Ordering::Relaxed);
}

pub(crate) fn count_exported(spans: usize) {
    EXPORTED.fetch_add(spans as u64, Ordering::Relaxed);
}

/// Takes spans for the collector. Never waits: what does not fit into the queue is dropped and counted.
pub struct Recorder {
    queue: mpsc::Sender<SpanData>,
    sampler: Sampler,
    scope: InstrumentationScope,
}

/// What happened, and when.
pub struct Span {
    /// Its place in the trace.
    pub context: TraceContext,
    /// Its role in a call.
    pub kind: SpanKind,
    /// What it is about, one of a small set of names.
    pub name: Cow<'static, str>,
    /// How long it took until now.
    pub took: Duration,
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Recorder {
    /// Makes the one of this process.
    pub(crate) fn install(
        queue: mpsc::Sender<SpanData>,
        sampler: Sampler,
        daemon: &'static str,
        version: &'static str,
    ) {
        let scope = InstrumentationScope::builder(daemon).with_version(version).build();
        // There is one start of a process.
        let _ = RECORDER.set(Self { queue, sampler, scope });
    }

    /// Which traces that begin here are recorded.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Records a span that ends now, if its trace is recorded.
    pub fn record(&self, span: Span) {
        let context = span.context;
        if !context.recorded {
            return;
        }
        let Ok(place) = self.queue.try_reserve() else {
            count_dropped(1);
            return;
        };
        let end_time = SystemTime::now();
        let id = |span: SpanId| opentelemetry::trace::SpanId::from(span.0);
        let trace_id = opentelemetry::trace::TraceId::from(context.trace_id.0);
        place.send(SpanData {
            span_context: SpanContext::new(
                trace_id,
                id(context.span_id),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: context.parent.map_or(opentelemetry::trace::SpanId::INVALID, id),
            parent_span_is_remote: context.parent.is_some(),
            span_kind: span.kind,
            name: span.name,
            start_time: end_time.checked_sub(span.took).unwrap_or(end_time),
            end_time,
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }
}
