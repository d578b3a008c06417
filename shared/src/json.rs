//! JSON as other programs wrote it: read leniently, and kept as it was.
//!
//! JavaScript writes without complaint what strict readers refuse or round: half of a surrogate pair, numbers of any
//! size, a byte order mark. Such text is valid by the grammar (RFC 8259), so here it is read with replacements, and
//! what is written back is the text itself.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

/// Whether `text` is one JSON value by the grammar, whatever its numbers and escapes mean.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<IgnoredAny>(text).map(|_| ())
}

/// `bytes` without a byte order mark.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads text that [`check`] accepts. Half surrogate pairs read as U+FFFD, numbers beyond every type as the largest
/// one, and integers beyond 64 bits are rounded.
///
/// # Errors
/// It is of another shape than `T`.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(&repaired(text))
}

/// As [`read`], from bytes with or without a byte order mark.
///
/// # Errors
/// As there; or they are not UTF-8.
pub fn read_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    match std::str::from_utf8(without_mark(bytes)) {
        Ok(text) => read(text),
        // Says where.
        Err(_) => serde_json::from_slice(bytes),
    }
}

/// The members of an object, each key (in its quotes) and value as they stand there; `None`: not an object.
/// `text` is one that [`check`] accepts.
pub fn members(text: &str) -> Option<Vec<(&str, &str)>> {
    let text = text.trim_ascii();
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut members = Vec::new();
    let mut rest = inner.trim_ascii_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_at_checked(end_of_value(rest))?;
        let after = after.trim_ascii_start().strip_prefix(':')?.trim_ascii_start();
        let (value, after) = after.split_at_checked(end_of_value(after))?;
        members.push((key, value));
        let after = after.trim_ascii_start();
        rest = after.strip_prefix(',').unwrap_or(after).trim_ascii_start();
        if rest.len() == after.len() && !rest.is_empty() {
            return None;
        }
    }
    Some(members)
}

/// A key as text.
pub fn key_text(key: &str) -> String {
    read(key).unwrap_or_default()
}

/// `text` changed so that it says `wanted`. Whatever says the same already stays as it stands; objects are changed
/// member by member, and members that `wanted` lacks go. `indent` is that of the line on which the value begins.
pub fn updated(text: &str, wanted: &Value, indent: usize) -> String {
    if read::<Value>(text).is_ok_and(|held| held == *wanted) {
        return text.into();
    }
    let (Some(held), Value::Object(wanted)) = (members(text), wanted) else { return pretty(wanted, indent) };
    let mut written: Vec<(String, String)> = Vec::new();
    for (key, value) in held {
        if let Some(wanted) = wanted.get(&key_text(key)) {
            written.push((key.into(), updated(value, wanted, indent + 2)));
        }
    }
    for (key, value) in wanted {
        if !written.iter().any(|(held, _)| key_text(held) == *key) {
            written.push((Value::from(key.as_str()).to_string(), pretty(value, indent + 2)));
        }
    }
    object(written.iter().map(|(key, value)| (key.as_str(), value.as_str())), indent)
}

/// `text`, an object, with this member set.
pub fn with(text: &str, name: &str, value: &Value, indent: usize) -> String {
    let Some(held) = members(text) else { return text.into() };
    let new = pretty(value, indent + 2);
    let quoted = Value::from(name).to_string();
    let is_it = |key: &str| key_text(key) == name;
    let kept = held.iter().map(|(key, value)| (*key, if is_it(key) { new.as_str() } else { *value }));
    let added = (!held.iter().any(|(key, _)| is_it(key))).then_some((quoted.as_str(), new.as_str()));
    object(kept.chain(added), indent)
}

/// An object of these members, a line each.
pub fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>, indent: usize) -> String {
    let lines: Vec<String> =
        members.map(|(key, value)| format!("\n{:width$}{key}: {value}", "", width = indent + 2)).collect();
    match lines.is_empty() {
        true => "{}".into(),
        false => format!("{{{}\n{:indent$}}}", lines.join(","), ""),
    }
}

/// A value as people read it, to stand on a line with this indent.
pub fn pretty(value: &Value, indent: usize) -> String {
    // A value of texts and numbers cannot fail to serialize. Line breaks within texts are escaped.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.replace('\n', &format!("\n{:indent$}", ""))
}

/// The object in `value`, empty if it is something else.
pub fn as_map(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Where the value at the start of `text` ends.
fn end_of_value(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut i) = (0_usize, 0);
    while let Some(byte) = bytes.get(i) {
        match byte {
            b'"' => i = end_of_string(bytes, i),
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return i,
            b'}' | b']' => depth -= 1,
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return i,
            _ => {}
        }
        i += 1;
        if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
            return i;
        }
    }
    bytes.len()
}

/// The closing quote of the string that opens at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while let Some(byte) = bytes.get(i) {
        match byte {
            b'\\' => i += 2,
            b'"' => return i,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// The same text with what serde_json refuses replaced.
fn repaired(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut replaced = String::new();
    let (mut copied, mut i) = (0, 0);
    let mut replace = |from: usize, to: usize, with: &str| {
        replaced.push_str(&text[copied..from]);
        replaced.push_str(with);
        copied = to;
    };
    while let Some(byte) = bytes.get(i) {
        match byte {
            b'"' => {
                let end = end_of_string(bytes, i);
                let mut at = i + 1;
                while at < end {
                    if bytes[at] != b'\\' {
                        at += 1;
                        continue;
                    }
                    match (surrogate(bytes, at), surrogate(bytes, at + 6)) {
                        (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => at += 12,
                        (Some(_), _) => {
                            replace(at, at + 6, "\\ufffd");
                            at += 6;
                        }
                        (None, _) => at += 2,
                    }
                }
                i = end + 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let end = i + bytes[i..].iter().take_while(|byte| is_part(byte)).count();
                if text[i..end].parse::<f64>().is_ok_and(f64::is_infinite) {
                    replace(
                        i,
                        end,
                        if *byte == b'-' { "-1.7976931348623157e308" } else { "1.7976931348623157e308" },
                    );
                }
                i = end;
            }
            _ => i += 1,
        }
    }
    if copied == 0 {
        return text.into();
    }
    replaced.push_str(&text[copied..]);
    replaced.into()
}

/// The surrogate that is escaped at `at`, if one is.
fn surrogate(bytes: &[u8], at: usize) -> Option<u32> {
    let escape = bytes.get(at..at + 6)?;
    let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
    u32::from_str_radix(digits, 16).ok().filter(|code| (0xd800..0xe000).contains(code))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_javascript_writes_is_read() {
        let read = |text: &str| {
            check(text).unwrap();
            read::<Value>(text).unwrap()
        };
        assert_eq!(
            read(r#"["a\ud83d", "\udc00b", "\ud83d\ude00", "\\ud83d"]"#),
            json!(["a\u{fffd}", "\u{fffd}b", "😀", "\\ud83d"])
        );
        assert_eq!(read(r#"["\ud83d\ud83d\ude00"]"#), json!(["\u{fffd}😀"]));
        assert_eq!(
            read(r#"{"a": 1e400, "b": -1e400, "c": 1}"#),
            json!({"a": f64::MAX, "b": f64::MIN, "c": 1})
        );
        assert_eq!(read_bytes::<Value>(b"\xef\xbb\xbf[1]").unwrap(), json!([1]));
        assert!(check("[1,]").is_err() && check(r#""\u12""#).is_err());
    }

    #[test]
    fn members_are_found_as_they_stand() {
        let text = r#" { "a" : {"x":[1, "}"]} ,"b\"":"c,\\" , "":1e400}"#;
        let found = members(text).unwrap();
        assert_eq!(found, [("\"a\"", r#"{"x":[1, "}"]}"#), (r#""b\"""#, r#""c,\\""#), ("\"\"", "1e400")]);
        assert_eq!(members("{ }"), Some(Vec::new()));
        assert_eq!(members("[1]"), None);
    }

    #[test]
    fn only_what_says_something_else_is_changed() {
        let text = r#"{"big":123456789012345678901234567890,"m":{"half":"\ud83d","n":1},"gone":1}"#;
        let mut wanted: Value = read(text).unwrap();
        wanted["m"]["n"] = json!(2);
        wanted.as_object_mut().unwrap().remove("gone");
        let changed = updated(text, &wanted, 0);
        assert_eq!(
            changed,
            "{\n  \"big\": 123456789012345678901234567890,\n  \"m\": {\n    \"half\": \"\\ud83d\",\n    \"n\": 2\n  }\n}"
        );
        assert_eq!(updated(text, &read(text).unwrap(), 0), text);
        assert_eq!(with("{}", "a", &json!(1), 0), "{\n  \"a\": 1\n}");
    }
}
