//! The trace that an exchange belongs to, as the headers `traceparent` and `tracestate` say it (W3C Trace Context).

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

/// The trace that an exchange belongs to, and the exchange's own span in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that the sidecar makes for the exchange.
    pub span_id: SpanId,
    /// The span of the caller; `None`: the trace begins here.
    pub parent: Option<SpanId>,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
    random: bool,
}

impl TraceContext {
    /// The trace that a request belongs to. Where its headers name none, or their value is not valid, a new one begins
    /// here.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let only = values.next().filter(|_| values.next().is_none());
        only.and_then(|value| Self::parse(value.as_bytes())).unwrap_or_else(Self::begin)
    }

    /// A new trace. It is marked as sampled: programs that follow the mark would otherwise record nothing of what reaches
    /// them through the mesh.
    fn begin() -> Self {
        let trace_id = TraceId(u128::from(random()) << 64 | u128::from(random()));
        Self { trace_id, span_id: SpanId(random()), parent: None, sampled: true, random: true }
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
            random: flags & RANDOM != 0,
        })
    }

    /// Tells the next hop of the trace. `recorded`: whether this exchange's span is recorded, and therefore is the parent
    /// of the next one; otherwise a caller's span stays that.
    pub fn pass_on(&self, headers: &mut HeaderMap, recorded: bool) {
        let from = match self.parent {
            Some(parent) if !recorded => parent,
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
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert(TRACEPARENT, value);
        }
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
        Some(number << 4 | u128::from(value))
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

    fn passed(said: &[&'static str], recorded: bool) -> (TraceContext, HeaderMap) {
        let mut headers = HeaderMap::new();
        for value in said {
            headers.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let context = TraceContext::read(&headers);
        context.pass_on(&mut headers, recorded);
        (context, headers)
    }

    #[test]
    fn a_valid_trace_goes_on() {
        let (context, headers) = passed(&[VALID], false);
        assert_eq!(context.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent, Some(SpanId(0x00f0_67aa_0ba9_02b7)));
        assert!(context.sampled);
        assert_eq!(headers[TRACEPARENT], VALID);
        assert_eq!(headers[TRACESTATE], "vendor=1");
    }

    #[test]
    fn a_span_that_is_recorded_is_the_parent_of_the_next() {
        let (context, headers) = passed(&[VALID], true);
        let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", context.span_id);
        assert_eq!(headers[TRACEPARENT], expected.as_str());
    }

    #[test]
    fn flags_that_are_not_known_do_not_pass() {
        for (said, expected) in [("00", "00"), ("02", "02"), ("ff", "03"), ("fc", "00")] {
            let mut headers = HeaderMap::new();
            let value = format!("{}{said}", VALID.strip_suffix("01").unwrap());
            headers.insert(TRACEPARENT, HeaderValue::from_str(&value).unwrap());
            TraceContext::read(&headers).pass_on(&mut headers, false);
            assert!(headers[TRACEPARENT].to_str().unwrap().ends_with(&format!("-{expected}")), "{said}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for said in [
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what the future holds",
        ] {
            let (_, headers) = passed(&[said], false);
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
            let (context, headers) = passed(said, false);
            assert_eq!(context.parent, None, "{said:?}");
            assert!(context.sampled && context.trace_id.0 != 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
            let expected = format!("00-{}-{}-03", context.trace_id, context.span_id);
            assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [expected.as_str()]);
            assert!(!headers.contains_key(TRACESTATE), "{said:?}");
        }
    }

    #[test]
    fn digits_are_those_of_the_id() {
        let id = TraceId(0x0a);
        assert_eq!(id.with_digits(str::to_owned), id.to_string());
    }
}
