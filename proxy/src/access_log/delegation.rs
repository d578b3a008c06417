//! Reads who asks and what for out of a `MessageRequest` while it streams past, for the log line.
//!
//! Pure: bytes in, two short texts out. It never holds the body back, keeps only the beginning of the two
//! fields it looks for, and takes any input without failing; what it finds in what is not JSON means nothing.

use std::borrow::Cow;

/// Room for a key, or for a task of a few sentences.
const FIRST_TEXT_BYTES: usize = 256;

/// Looks for the top-level text fields `fromAgent` and `message`.
#[derive(Debug)]
pub struct DelegationScanner {
    state: State,
    /// Open objects and arrays.
    depth: u32,
    /// At depth 1: whether the next text is a key.
    at_key: bool,
    /// The key whose value comes next.
    field: Field,
    /// The text being read, still escaped.
    text: Vec<u8>,
    max_text_bytes: usize,
    from_agent: Option<String>,
    message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Between,
    InText { escaped: bool },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Other,
    FromAgent,
    Message,
}

impl DelegationScanner {
    /// Keeps at most `max_chars` characters of the message (a few more may be kept).
    pub fn new(max_chars: usize) -> Self {
        Self {
            state: State::Between,
            depth: 0,
            at_key: false,
            field: Field::Other,
            text: Vec::new(),
            // A character outside the basic plane is 12 bytes when escaped. One more than is shown, so that
            // it can be seen that something was cut; and never too few for an agent's name.
            max_text_bytes: 12 * (max_chars.max(64) + 1),
            from_agent: None,
            message: None,
        }
    }

    /// Takes the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let (false, Some((&byte, tail))) = (self.state == State::Done, rest.split_first()) {
            let here = rest;
            rest = tail;
            match self.state {
                State::InText { escaped: true } => {
                    self.keep(&[byte]);
                    self.state = State::InText { escaped: false };
                }
                State::InText { escaped: false } if byte == b'"' => self.end_text(),
                State::InText { .. } if byte == b'\\' => {
                    self.keep(b"\\");
                    self.state = State::InText { escaped: true };
                }
                State::InText { .. } => {
                    // Most of a body is the inside of texts: take it in one piece.
                    let run = memchr::memchr2(b'"', b'\\', here).unwrap_or(here.len());
                    self.keep(&here[..run]);
                    rest = &here[run..];
                }
                State::Between => self.between(byte),
                State::Done => {}
            }
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.text.clear();
                self.text.reserve(FIRST_TEXT_BYTES.min(self.max_text_bytes));
                self.state = State::InText { escaped: false };
            }
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                self.at_key = byte == b'{' && self.depth == 1;
                // A request is an object; anything else holds nothing to find.
                if byte == b'[' && self.depth == 1 {
                    self.state = State::Done;
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.state = State::Done;
                }
            }
            b',' if self.depth == 1 => {
                self.at_key = true;
                self.field = Field::Other;
            }
            _ => {}
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let wanted = self.depth == 1 && (self.at_key || self.field != Field::Other);
        if wanted {
            let room = self.max_text_bytes.saturating_sub(self.text.len());
            self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn end_text(&mut self) {
        self.state = State::Between;
        if self.depth != 1 {
            return;
        }
        if self.at_key {
            self.at_key = false;
            // As in most parsers, the last of several values counts.
            self.field = match &*unescape(&self.text) {
                "fromAgent" => {
                    self.from_agent = None;
                    Field::FromAgent
                }
                "message" => {
                    self.message = None;
                    Field::Message
                }
                _ => Field::Other,
            };
            return;
        }
        match self.field {
            Field::FromAgent => self.from_agent = Some(unescape(&self.text).into_owned()),
            Field::Message => self.message = Some(unescape(&self.text).into_owned()),
            Field::Other => {}
        }
    }

    /// The asking agent's name as the body claims it, once it has passed.
    pub fn from_agent(&self) -> Option<&str> {
        self.from_agent.as_deref()
    }

    /// The beginning of the task, once it has passed.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

/// JSON text without its quotes, possibly cut in the middle of an escape or a character.
fn unescape(raw: &[u8]) -> Cow<'_, str> {
    const LONGEST_ESCAPE_BYTES: usize = 12;
    // Nearly all of it means itself.
    if let (None, Ok(text)) = (memchr::memchr(b'\\', raw), std::str::from_utf8(raw)) {
        return Cow::Borrowed(text);
    }
    (0..=LONGEST_ESCAPE_BYTES.min(raw.len()))
        .find_map(|cut| {
            let text = std::str::from_utf8(&raw[..raw.len() - cut]).ok()?;
            serde_json::from_str(&format!("\"{text}\"")).ok().map(Cow::Owned)
        })
        .unwrap_or_else(|| String::from_utf8_lossy(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(body: &str, chunk: usize) -> (Option<String>, Option<String>) {
        let mut scanner = DelegationScanner::new(100);
        body.as_bytes().chunks(chunk).for_each(|bytes| scanner.feed(bytes));
        (scanner.from_agent().map(Into::into), scanner.message().map(Into::into))
    }

    #[test]
    fn finds_both_fields_however_the_body_is_cut() {
        let body = r#" {"chainDepth":1,"meta":{"fromAgent":"x","message":["y"]},"message":"a \"b\" \u00e9\ud83d\ude00\n{","fromAgent":"opus"}"#;
        for chunk in 1..body.len() {
            let (from, message) = scan(body, chunk);
            assert_eq!(from.as_deref(), Some("opus"), "chunk {chunk}");
            assert_eq!(message.as_deref(), Some("a \"b\" é😀\n{"), "chunk {chunk}");
        }
    }

    #[test]
    fn reads_keys_and_values_as_the_agent_does() {
        let body =
            r#"{"message":"harmless","fromAgent":"ct999","mess\u0061ge":"EVIL","\u0066romAgent":"opus"}"#;
        assert_eq!(scan(body, 7), (Some("opus".into()), Some("EVIL".into())));
        assert_eq!(scan(r#"{"message":"harmless","message":5}"#, 7), (None, None));
    }

    #[test]
    fn keeps_only_the_beginning_of_a_long_task() {
        for filler in ["x", "é", "\\ud83d\\ude00", "\\n"] {
            let body = format!(r#"{{"message":"{}","fromAgent":"opus"}}"#, filler.repeat(100_000));
            let (from, message) = scan(&body, 4096);
            assert_eq!(from.as_deref(), Some("opus"));
            let kept = message.unwrap().chars().count();
            assert!((101..2000).contains(&kept), "{filler}: {kept}");
        }
    }

    #[test]
    fn what_is_no_request_yields_nothing() {
        for body in [
            "",
            "[",
            "null",
            "{]",
            "\"fromAgent\"",
            r#"[{"message":"a"}]"#,
            r#"{"message":{"message":"a"}}"#,
            "}}}{{{\"",
            "{\"message\":",
        ] {
            assert_eq!(scan(body, 3), (None, None), "{body}");
        }
    }
}
