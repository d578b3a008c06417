//! How long a caller allows: `x-mesh-timeout-ms`, and gRPC's `grpc-timeout`. Pure.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::ProxyError;

/// Milliseconds from now until the whole answer must have passed.
pub const MESH_TIMEOUT: HeaderName = HeaderName::from_static("x-mesh-timeout-ms");
/// The same in gRPC's form: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What `headers` allow; the shorter where both are there, `None` where neither is.
///
/// # Errors
/// A value that is not a time.
pub fn read(headers: &HeaderMap) -> Result<Option<Duration>, ProxyError> {
    let mesh = headers.get(MESH_TIMEOUT).map(|value| one(headers, &MESH_TIMEOUT, value, milliseconds));
    let grpc = headers.get(GRPC_TIMEOUT).map(|value| one(headers, &GRPC_TIMEOUT, value, grpc));
    Ok(match (mesh.transpose()?, grpc.transpose()?) {
        (Some(mesh), Some(grpc)) => Some(mesh.min(grpc)),
        (mesh, grpc) => mesh.or(grpc),
    })
}

/// Says in `headers` what is `left` of the time, in each form that the caller used.
pub fn pass_on(headers: &mut HeaderMap, left: Duration) {
    let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    if headers.contains_key(MESH_TIMEOUT) {
        headers.insert(MESH_TIMEOUT, HeaderValue::from(ms));
    }
    if headers.contains_key(GRPC_TIMEOUT) {
        let text =
            if ms < 100_000_000 { format!("{ms}m") } else { format!("{}S", (ms / 1000).min(99_999_999)) };
        // Digits and a letter.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
}

fn one(
    headers: &HeaderMap,
    name: &HeaderName,
    value: &HeaderValue,
    parse: fn(&str) -> Option<Duration>,
) -> Result<Duration, ProxyError> {
    let only = headers.get_all(name).iter().nth(1).is_none();
    let parsed = value.to_str().ok().filter(|_| only).and_then(parse);
    parsed.ok_or_else(|| {
        ProxyError::BadRequest(format!(
            "its {name} is not a time; expected {}",
            if *name == MESH_TIMEOUT {
                "milliseconds, such as 30000"
            } else {
                "gRPC's form, such as 30S or 500m"
            }
        ))
    })
}

fn milliseconds(text: &str) -> Option<Duration> {
    number(text, 15).map(Duration::from_millis)
}

fn grpc(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = number(digits, 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn number(digits: &str, most: usize) -> Option<u64> {
    let plain = (1..=most).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn both_forms_are_read_and_the_shorter_counts() {
        let read = |pairs: &[_]| read(&map(pairs)).unwrap();
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[(MESH_TIMEOUT, "1500")]), Some(Duration::from_millis(1500)));
        for (text, expected) in [("2H", 7_200_000), ("3M", 180_000), ("4S", 4_000), ("5m", 5)] {
            assert_eq!(read(&[(GRPC_TIMEOUT, text)]), Some(Duration::from_millis(expected)), "{text}");
        }
        assert_eq!(read(&[(MESH_TIMEOUT, "1500"), (GRPC_TIMEOUT, "1S")]), Some(Duration::from_millis(1000)));
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in ["", "-1", "1.5", "1s", " 1", "+1", "9999999999999999"] {
            assert!(read(&map(&[(MESH_TIMEOUT, text)])).is_err(), "{text:?}");
        }
        for text in ["", "S", "1", "1s", "123456789S", "1 S"] {
            assert!(read(&map(&[(GRPC_TIMEOUT, text)])).is_err(), "{text:?}");
        }
        let mut twice = map(&[(MESH_TIMEOUT, "1")]);
        twice.append(MESH_TIMEOUT, HeaderValue::from_static("2"));
        assert!(read(&twice).is_err());
    }

    #[test]
    fn what_is_left_is_passed_on_in_the_same_forms() {
        let mut headers = map(&[(MESH_TIMEOUT, "1500"), (GRPC_TIMEOUT, "2S")]);
        pass_on(&mut headers, Duration::from_millis(700));
        assert_eq!(headers, map(&[(MESH_TIMEOUT, "700"), (GRPC_TIMEOUT, "700m")]));
        let mut none = HeaderMap::new();
        pass_on(&mut none, Duration::from_millis(700));
        assert!(none.is_empty());
    }
}
