//! Traces of both daemons.
//!
//! [`TraceContext`] says which trace a request belongs to, whether or not anything is recorded. Where a collector is
//! configured, [`start`] makes the process' one [`Recorder`], which takes [`Span`]s without ever waiting; a task sends them by
//! OTLP over HTTP.

mod client;
mod context;
mod export;
mod recorder;

pub use context::{Sampler, SpanId, TraceContext, TraceId};
pub use export::{Exporting, start};
pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;
pub use recorder::{Recorder, Span, dropped, exported, recorder};
