//! How metrics are defined: each with its name, help, unit and labels, in one call that also registers it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mesh_telemetry::TraceId;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};

/// Begins the name of each metric.
const PREFIX: &str = "mesh_proxy";

/// What is said of a metric in the documentation.
#[derive(Debug)]
pub struct Definition {
    /// As in queries, with prefix, unit and `_total`.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<&'static str>,
    /// What it says, without a full stop.
    pub help: &'static str,
}

/// Collects the definitions.
pub struct Definitions {
    /// What is registered, for the text.
    pub registry: Registry,
    /// What was defined, in this order.
    pub all: Vec<Definition>,
}

impl Definitions {
    /// None yet.
    pub fn new() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), all: Vec::new() }
    }

    /// Defines a metric without labels; `name` is without prefix, unit and `_total`.
    pub fn metric<M>(&mut self, name: &str, unit: Option<Unit>, help: &'static str, metric: M) -> M
    where
        M: Metric + TypedMetric + Clone,
    {
        self.register(name, unit, &[], help, metric.clone());
        metric
    }

    /// Defines a metric with these labels.
    pub fn family<M>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        labels: &'static [&'static str],
        help: &'static str,
        new: fn() -> M,
    ) -> Labelled<M>
    where
        M: Metric + TypedMetric + Clone,
    {
        let family = Family::new_with_constructor(new);
        self.register(name, unit, labels, help, family.clone());
        Labelled { labels, family }
    }

    /// Defines a metric that is always 1 and says these things in its labels.
    pub fn info(&mut self, name: &str, values: &[(&'static str, &'static str)], help: &'static str) {
        let labels: Vec<_> = values.iter().map(|(label, _)| *label).collect();
        self.define(name, None, MetricType::Info, &labels, help);
        self.registry.register(name, help, Info::new(values.to_vec()));
    }

    fn register<M: Metric + TypedMetric>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        labels: &'static [&'static str],
        help: &'static str,
        metric: M,
    ) {
        self.define(name, unit.as_ref(), M::TYPE, labels, help);
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, metric),
            None => self.registry.register(name, help, metric),
        }
    }

    fn define(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        labels: &[&'static str],
        help: &'static str,
    ) {
        let mut full = format!("{PREFIX}_{name}");
        if let Some(unit) = unit {
            full.extend(["_", unit.as_str()]);
        }
        let (kind, suffix) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("info", "_info"),
            _ => ("unknown", ""),
        };
        full.push_str(suffix);
        self.all.push(Definition { name: full, kind, labels: labels.to_vec(), help });
    }
}

/// Names and values of one series' labels.
type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// A metric with labels. Only for making handles: a look-up takes a lock and allocates.
#[derive(Debug, Clone)]
pub struct Labelled<M> {
    labels: &'static [&'static str],
    family: Family<Labels, M>,
}

impl<M: Clone> Labelled<M> {
    /// The series with these values, one for each label in the order of the definition.
    pub fn with<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> M {
        let values = values.into_iter().map(|value| Cow::Owned(value.to_owned()));
        self.family.get_or_create_owned(&self.labels.iter().copied().zip(values).collect())
    }
}

/// A counter that only rises.
#[derive(Debug, Clone, Default)]
pub struct Count(Counter);

impl Count {
    /// Counts one more.
    pub fn add_one(&self) {
        self.0.inc();
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.0.inc_by(more);
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Count {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A counter that is kept elsewhere and read when it is asked for.
#[derive(Debug, Clone)]
pub struct CountedElsewhere(pub fn() -> u64);

impl TypedMetric for CountedElsewhere {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for CountedElsewhere {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&(self.0)(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// How many there are now.
#[derive(Debug, Clone, Default)]
pub struct Level(Arc<AtomicI64>);

impl Level {
    /// One more.
    pub fn rise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn fall(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// One more until what this returns is dropped.
    pub fn hold(&'static self) -> Held {
        self.rise();
        Held(self)
    }
}

impl TypedMetric for Level {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Level {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// One of those that a `Level` counts, until it is dropped.
#[derive(Debug)]
#[must_use = "it counts only until it is dropped"]
pub struct Held(&'static Level);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fall();
    }
}

/// A point in time in epoch seconds; not shown while there is none.
#[derive(Debug, Clone)]
pub struct Stamp(Arc<AtomicI64>);

const NEVER: i64 = i64::MIN;

impl Default for Stamp {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(NEVER)))
    }
}

impl Stamp {
    /// Sets it; `None`: there is no such time.
    pub fn set(&self, epoch_seconds: Option<i64>) {
        self.0.store(epoch_seconds.unwrap_or(NEVER), Ordering::Relaxed);
    }
}

impl TypedMetric for Stamp {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Stamp {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NEVER
    }
}

/// The seconds since something last happened, computed when they are asked for; not shown before the first time.
#[derive(Debug, Clone)]
pub struct Age {
    start: Instant,
    /// Milliseconds from `start`, plus one; 0: never.
    last: Arc<AtomicU64>,
}

impl Age {
    /// Nothing happened yet.
    pub fn new() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }

    /// It happened now.
    pub fn renew(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }
}

impl TypedMetric for Age {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Age {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed).saturating_sub(1));
        encoder.encode_gauge(&self.start.elapsed().saturating_sub(last).as_secs_f64())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.last.load(Ordering::Relaxed) == 0
    }
}

/// A duration that is told again and again, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Seconds(Arc<AtomicU64>);

impl Seconds {
    /// Sets it.
    pub fn set(&self, duration: Duration) {
        self.0.store(duration.as_micros() as u64, Ordering::Relaxed);
    }
}

impl TypedMetric for Seconds {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Seconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&Duration::from_micros(self.0.load(Ordering::Relaxed)).as_secs_f64())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Durations from a millisecond to an hour. The crate's own histogram locks; this one only adds.
#[derive(Debug, Clone, Default)]
pub struct Durations(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// The last is for what is longer than all bounds.
    counts: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

/// Upper bounds of the buckets.
const BOUNDS_MS: [u64; 20] = [
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000,
    600_000, 1_800_000, 3_600_000,
];

impl Durations {
    /// Counts one that took so long.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MS.partition_point(|bound| bound * 1000 < micros);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(micros, Ordering::Relaxed);
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_MS.iter().map(|ms| *ms as f64 / 1000.0).chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // Of the same reading, so that the last bucket is the count.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.0.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Durations of which some have a trace: each bucket names the last one that fell into it (OpenMetrics, "Exemplars").
#[derive(Debug, Clone)]
pub struct TracedDurations(HistogramWithExemplars<[(&'static str, String); 1]>);

impl Default for TracedDurations {
    fn default() -> Self {
        Self(HistogramWithExemplars::new(BOUNDS_MS.iter().map(|ms| *ms as f64 / 1000.0)))
    }
}

impl TracedDurations {
    /// Counts one that took so long, and belongs to this trace.
    pub fn observe(&self, duration: Duration, trace: Option<TraceId>) {
        let labels = trace.map(|trace| [("trace_id", trace.to_string())]);
        let at = labels.is_some().then(SystemTime::now);
        self.0.observe(duration.as_secs_f64(), labels, at);
    }
}

impl TypedMetric for TracedDurations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for TracedDurations {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let durations = Durations::default();
        for ms in [0, 1, 2, 3_600_000, 3_600_001] {
            durations.observe(Duration::from_millis(ms));
        }
        let counts = durations.0.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert_eq!((counts[0], counts[1], counts[19], counts[20]), (2, 1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
    }
}
