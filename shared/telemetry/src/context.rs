//! The trace that a request belongs to, as the headers `traceparent` and `tracestate` say it (W3C Trace Context).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// The caller may have recorded its span.
const SAMPLED: u8 = 1;
/// The trace id is random in its lower half (level 2 of the recommendation).
const RANDOM: u8 = 2;

/// The id of a trace: 32 hexadecimal digits, never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub u128);

/// The id of a span: 16 hexadecimal digits, never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub u64);

/// The trace that a request or another piece of work belongs to, and its own span in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// Its own span.
    pub span_id: SpanId,
    /// The span of the caller; `None`: the trace begins here.
    pub parent: Option<SpanId>,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
    /// Whether its span is recorded here.
    pub recorded: bool,
    random: bool,
}

impl TraceContext {
    /// The trace that a request belongs to. Where its headers name none, or their value is not valid, a new one begins
    /// here. `sampler`: where spans are recorded.
    pub fn read(headers: &HeaderMap, sampler: Option<Sampler>) -> Self {
        Self::of_caller(headers, sampler).unwrap_or_else(|| Self::begin(sampler))
    }

    /// The trace that the headers name; `None`: they name none, or their value is not valid.
    pub fn of_caller(headers: &HeaderMap, sampler: Option<Sampler>) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let only = values.next().filter(|_| values.next().is_none());
        let mut context = only.and_then(|value| Self::parse(value.as_bytes()))?;
        context.recorded = context.sampled && sampler.is_some();
        Some(context)
    }

    /// A new trace. Where no spans are recorded it is marked as sampled all the same: programs that follow the mark would
    /// otherwise record nothing of what reaches them through the mesh.
    pub fn begin(sampler: Option<Sampler>) -> Self {
        let trace_id = TraceId((u128::from(random()) << 64) | u128::from(random()));
        let sampled = sampler.is_none_or(|sampler| sampler.takes(trace_id));
        let recorded = sampled && sampler.is_some();
        Self { trace_id, span_id: SpanId(random()), parent: None, sampled, recorded, random: true }
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let [v1, v2, b'-', trace_id @ .., b'-', f1, f2] = known else { return None };
        let (trace_id, b'-', parent) = (trace_id.get(..32)?, *trace_id.get(32)?, trace_id.get(33..)?) else {
            return None;
        };
        // Later versions may only add to what this one has.
        let whole = match hex(&[*v1, *v2])? {
            0 => rest.is_empty(),
            0xff => false,
            _ => matches!(rest, [] | [b'-', ..]),
        };
        let trace_id = hex(trace_id).filter(|id| *id != 0)?;
        let parent = hex(parent).filter(|id| *id != 0)? as u64;
        let flags = hex(&[*f1, *f2])? as u8;
        whole.then(|| Self {
            trace_id: TraceId(trace_id),
            span_id: SpanId(random()),
            parent: Some(SpanId(parent)),
            sampled: flags & SAMPLED != 0,
            recorded: false,
            random: flags & RANDOM != 0,
        })
    }

    /// Tells the next hop of the trace. The own span is the parent of the next one if it is recorded, or is the first;
    /// otherwise the caller's span stays that.
    pub fn pass_on(&self, headers: &mut HeaderMap) {
        let from = match self.parent {
            Some(parent) if !self.recorded => parent,
            _ => self.span_id,
        };
        if self.parent.is_none() {
            // It belongs to a `traceparent` that is not valid.
            headers.remove(TRACESTATE);
        }
        let flags = (u8::from(self.sampled) * SAMPLED) | (u8::from(self.random) * RANDOM);
        let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut value[3..35], self.trace_id.0);
        write_hex(&mut value[36..52], u128::from(from.0));
        write_hex(&mut value[53..], u128::from(flags));
        // Digits and dashes always are a valid value.
        if let Ok(mut value) = HeaderValue::from_bytes(&value) {
            // No two are alike: in the table of HPACK, each would push out what comes again.
            value.set_sensitive(true);
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// Which of the traces that begin here are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// As OpenTelemetry's `TraceIdRatioBased` has it, so that all who look at the trace id decide alike.
    below: u64,
}

impl Sampler {
    /// This share of them, from 0 to 1.
    pub fn new(ratio: f64) -> Self {
        Self { below: (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64 }
    }

    fn takes(self, trace_id: TraceId) -> bool {
        (trace_id.0 as u64) >> 1 < self.below
    }
}

impl TraceId {
    /// Calls `with` with the id's digits.
    pub fn with_digits<R>(&self, with: impl FnOnce(&str) -> R) -> R {
        let mut digits = [0; 32];
        write_hex(&mut digits, self.0);
        with(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Lower-case hexadecimal digits, as the recommendation demands; at most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(value))
    })
}

fn write_hex(to: &mut [u8], mut number: u128) {
    for digit in to.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

/// A number that cannot be foreseen, other than zero.
fn random() -> u64 {
    static RANDOM: LazyLock<(RandomState, AtomicU64)> = LazyLock::new(Default::default);
    loop {
        let number = RANDOM.0.hash_one(RANDOM.1.fetch_add(1, Ordering::Relaxed));
        if number != 0 {
            return number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn passed(said: &[&'static str], sampler: Option<Sampler>) -> (TraceContext, HeaderMap) {
        let mut headers = HeaderMap::new();
        for value in said {
            headers.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let context = TraceContext::read(&headers, sampler);
        context.pass_on(&mut headers);
        (context, headers)
    }

    #[test]
    fn a_valid_trace_goes_on() {
        let (context, headers) = passed(&[VALID], None);
        assert_eq!(context.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent, Some(SpanId(0x00f0_67aa_0ba9_02b7)));
        assert!(context.sampled);
        assert_eq!(headers[TRACEPARENT], VALID);
        assert_eq!(headers[TRACESTATE], "vendor=1");
    }

    #[test]
    fn a_span_that_is_recorded_is_the_parent_of_the_next() {
        let (context, headers) = passed(&[VALID], Some(Sampler::new(0.0)));
        let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", context.span_id);
        assert_eq!(headers[TRACEPARENT], expected.as_str());
    }

    #[test]
    fn flags_that_are_not_known_do_not_pass() {
        for (said, expected) in [("00", "00"), ("02", "02"), ("ff", "03"), ("fc", "00")] {
            let mut headers = HeaderMap::new();
            let value = format!("{}{said}", VALID.strip_suffix("01").unwrap());
            headers.insert(TRACEPARENT, HeaderValue::from_str(&value).unwrap());
            TraceContext::read(&headers, None).pass_on(&mut headers);
            assert!(headers[TRACEPARENT].to_str().unwrap().ends_with(&format!("-{expected}")), "{said}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for said in [
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what the future holds",
        ] {
            let (_, headers) = passed(&[said], None);
            assert_eq!(headers[TRACEPARENT], VALID, "{said}");
        }
    }

    #[test]
    fn what_is_not_valid_is_replaced_by_a_new_trace() {
        for said in [
            &[][..],
            &[""],
            &[VALID, VALID],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0G"],
            &["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"],
            &["00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-011"],
            &["00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01"],
            &["ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            &["01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x"],
        ] {
            let (context, headers) = passed(said, None);
            assert_eq!(context.parent, None, "{said:?}");
            assert!(context.sampled && context.trace_id.0 != 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
            let expected = format!("00-{}-{}-03", context.trace_id, context.span_id);
            assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [expected.as_str()]);
            assert!(!headers.contains_key(TRACESTATE), "{said:?}");
        }
    }

    #[test]
    fn the_caller_decides_whether_its_trace_is_recorded_and_the_ratio_about_others() {
        let begun =
            |ratio| (0..1000).filter(|_| TraceContext::begin(Some(Sampler::new(ratio))).recorded).count();
        assert_eq!((begun(0.0), begun(1.0)), (0, 1000));
        assert!((300..700).contains(&begun(0.5)));
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let (context, headers) = passed(&[unsampled], Some(Sampler::new(1.0)));
        assert!(!context.recorded);
        assert_eq!(headers[TRACEPARENT], unsampled, "the caller's span stays the parent");
        let (context, headers) = passed(&[], Some(Sampler::new(0.0)));
        let expected = format!("00-{}-{}-02", context.trace_id, context.span_id);
        assert_eq!(headers[TRACEPARENT], expected.as_str());
    }

    #[test]
    fn digits_are_those_of_the_id() {
        let id = TraceId(0x0a);
        assert_eq!(id.with_digits(str::to_owned), id.to_string());
    }
}
