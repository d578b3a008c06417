//! One event as one line, as text or as JSON.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Write};
use std::time::UNIX_EPOCH;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Format;
use super::journal::FIELD;
use super::outside_text::{Quoted, Visible, is_hidden, is_plain};

/// Most characters of a line's message, and of each of its values.
const MAX_MESSAGE_CHARS: usize = 8000;
const MAX_VALUE_CHARS: usize = 2000;

/// Which bytes a value without quotes may have.
static BARE: [bool; 256] = {
    let mut bare = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        bare[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'_' | b':' | b'/' | b'@' | b'+' | b'-');
        byte += 1;
    }
    bare
};

/// How lines are written.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Text or JSON.
    pub format: Format,
    /// Whether text begins with the time.
    pub time: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut logged = LoggedTarget(None);
        if metadata.target() == "log" {
            // Of a library that uses the crate `log`; the target is one of the fields then.
            event.record(&mut logged);
        }
        let target = logged.0.as_deref().unwrap_or(metadata.target());
        // To write to a string costs less than to write to whatever `writer` is.
        let mut line = take_string();
        self.write(&mut line, *metadata.level(), target, event)?;
        writer.write_str(&line)?;
        give_back(line);
        Ok(())
    }
}

impl Line {
    fn write(&self, line: &mut String, level: Level, target: &str, event: &Event<'_>) -> fmt::Result {
        self.head(line, level, target)?;
        let mut message = Message { format: self.format, line, outcome: Ok(()) };
        event.record(&mut message);
        message.outcome?;
        let mut fields = Fields { format: self.format, line, text: String::new(), outcome: Ok(()) };
        event.record(&mut fields);
        fields.outcome?;
        self.end(line)
    }

    /// The line that tells of `lost` lines that were dropped.
    pub fn lost(&self, lost: u64) -> String {
        let mut line = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_lost(&mut line, lost);
        line
    }

    fn write_lost(&self, line: &mut String, lost: u64) -> fmt::Result {
        self.head(line, Level::WARN, "Log")?;
        let message = format_args!("{lost} lines were dropped here, because nobody read the log fast enough");
        write_message(self.format, line, &message)?;
        write_key(self.format, line, "dropped")?;
        write!(line, "{lost}")?;
        self.end(line)
    }

    /// Everything before the message.
    pub fn head(&self, line: &mut String, level: Level, target: &str) -> fmt::Result {
        match self.format {
            Format::Text | Format::Journal => {
                if self.time {
                    write_time(line)?;
                    line.write_char(' ')?;
                }
                line.write_str(level.as_str())?;
                line.write_str(" [")?;
                Visible::new(&mut *line, MAX_VALUE_CHARS).write_str(target)?;
                line.write_char(']')
            }
            Format::Json => {
                line.write_str("{\"time\":\"")?;
                write_time(line)?;
                write!(line, "\",\"level\":\"{level}\",\"target\":")?;
                write_json_string(line, &target, MAX_VALUE_CHARS)
            }
        }
    }

    /// Everything behind the last value.
    pub fn end(&self, line: &mut String) -> fmt::Result {
        line.write_str(match self.format {
            Format::Text | Format::Journal => "\n",
            Format::Json => "}\n",
        })
    }
}

/// A number.
pub fn write_u64(line: &mut String, value: u64) {
    line.push_str(itoa::Buffer::new().format(value));
}

/// A string for a line: the one of this thread, or a new one while another line is made in that.
pub fn take_string() -> String {
    LINE.take()
}

/// Keeps a string for the next line of this thread.
pub fn give_back(mut line: String) {
    line.clear();
    line.shrink_to(KEPT_BYTES);
    LINE.set(line);
}

/// The time up to its seconds, `2026-11-27T05:29:07.`, as it was written last by this thread, and that second.
type Second = (u64, [u8; 20]);

/// What is kept of a thread's line after a long one.
const KEPT_BYTES: usize = 1024;

thread_local! {
    static LINE: Cell<String> = const { Cell::new(String::new()) };
    static SECOND: Cell<Option<Second>> = const { Cell::new(None) };
}

/// The time in microseconds. What a second begins with is made once for all its lines.
fn write_time(line: &mut String) -> fmt::Result {
    let Ok(now) = std::time::SystemTime::now().duration_since(UNIX_EPOCH) else {
        return SystemTime.format_time(&mut Writer::new(line));
    };
    let beginning = match SECOND.get() {
        Some((second, beginning)) if second == now.as_secs() => beginning,
        _ => {
            let mut whole = String::new();
            SystemTime.format_time(&mut Writer::new(&mut whole))?;
            let Some(beginning) = whole.as_bytes().first_chunk().copied() else {
                return line.write_str(&whole);
            };
            let again = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
            let is_same = again.is_ok_and(|again| again.as_secs() == now.as_secs());
            // Beyond the year 9999 the form is another one.
            if !is_same || whole.len() != 27 {
                return line.write_str(&whole);
            }
            SECOND.set(Some((now.as_secs(), beginning)));
            beginning
        }
    };
    let mut time = [0; 27];
    time[..20].copy_from_slice(&beginning);
    let mut micros = now.subsec_micros();
    for digit in time[20..26].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    time[26] = b'Z';
    line.write_str(std::str::from_utf8(&time).unwrap_or_default())
}

/// The message.
pub fn write_message(format: Format, line: &mut String, message: &dyn fmt::Display) -> fmt::Result {
    match format {
        Format::Text | Format::Journal => {
            line.write_char(' ')?;
            write!(Visible::new(line, MAX_MESSAGE_CHARS), "{message}")
        }
        Format::Json => {
            line.write_str(",\"message\":")?;
            write_json_string(line, message, MAX_MESSAGE_CHARS)
        }
    }
}

/// The name of a value.
pub fn write_key(format: Format, line: &mut String, name: &str) -> fmt::Result {
    let name = name.strip_prefix("r#").unwrap_or(name);
    match format {
        Format::Text | Format::Journal => {
            line.write_char(if format == Format::Journal { FIELD } else { ' ' })?;
            line.write_str(name)?;
            line.write_char('=')
        }
        Format::Json => {
            line.write_char(',')?;
            match name {
                "time" | "level" | "target" => {
                    write_json_string(line, &format_args!("field.{name}"), MAX_VALUE_CHARS)?
                }
                name => write_json_string(line, &name, MAX_VALUE_CHARS)?,
            }
            line.write_char(':')
        }
    }
}

/// A value of text: a bare word as it is, anything else between quotes.
pub fn write_text(format: Format, line: &mut String, text: &str) -> fmt::Result {
    match format {
        Format::Json => write_json_string(line, &text, MAX_VALUE_CHARS),
        Format::Text | Format::Journal
            if (1..=MAX_VALUE_CHARS).contains(&text.len())
                && text.bytes().all(|byte| BARE[usize::from(byte)]) =>
        {
            line.write_str(text)
        }
        Format::Text | Format::Journal => {
            write!(line, "{}", Quoted { text, max_chars: MAX_VALUE_CHARS })
        }
    }
}

fn write_json_string(
    line: &mut String,
    text: &(impl fmt::Display + ?Sized),
    max_chars: usize,
) -> fmt::Result {
    line.write_char('"')?;
    write!(JsonEscaped { inner: line, left: Some(max_chars) }, "{text}")?;
    line.write_char('"')
}

/// The inside of a JSON string. What cannot be seen is escaped, so that a terminal does not act on it.
struct JsonEscaped<'a> {
    inner: &'a mut String,
    /// `None`: the text was cut.
    left: Option<usize>,
}

impl Write for JsonEscaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Some(mut left) = self.left else { return Ok(()) };
        if text.len() <= left && is_plain(text) && !text.contains(['"', '\\']) {
            self.left = Some(left - text.len());
            return self.inner.write_str(text);
        }
        for c in text.chars() {
            if left == 0 {
                self.left = None;
                return self.inner.write_str("...");
            }
            left -= 1;
            match c {
                '"' => self.inner.write_str("\\\"")?,
                '\\' => self.inner.write_str("\\\\")?,
                '\n' => self.inner.write_str("\\n")?,
                // All of them are in the basic plane: one unit of four digits.
                c if is_hidden(c) => write!(self.inner, "\\u{:04x}", u32::from(c))?,
                c => self.inner.write_char(c)?,
            }
        }
        self.left = Some(left);
        Ok(())
    }
}

const MESSAGE: &str = "message";

/// Finds the target of an event that came from the crate `log`.
struct LoggedTarget(Option<String>);

impl Visit for LoggedTarget {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.0 = Some(value.into());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Writes the message.
struct Message<'a> {
    format: Format,
    line: &'a mut String,
    outcome: fmt::Result,
}

impl Visit for Message<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.outcome = self.outcome.and_then(|()| write_message(self.format, self.line, &value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            let message = format_args!("{value:?}");
            self.outcome = self.outcome.and_then(|()| write_message(self.format, self.line, &message));
        }
    }
}

/// Writes everything but the message.
struct Fields<'a> {
    format: Format,
    line: &'a mut String,
    /// Room for values that have to be seen as a whole before they are written.
    text: String,
    outcome: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Self) -> fmt::Result) {
        // Where a library's line comes from is noise.
        if self.outcome.is_err() || field.name() == MESSAGE || field.name().starts_with("log.") {
            return;
        }
        self.outcome = write_key(self.format, self.line, field.name()).and_then(|()| value(self));
    }

    fn write_number(&mut self, field: &Field, number: &dyn fmt::Display) {
        self.write(field, |this| write!(this.line, "{number}"));
    }

    fn write_shown(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.write(field, |this| {
            this.text.clear();
            this.text.write_fmt(value)?;
            write_text(this.format, this.line, &this.text)
        });
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match value.is_finite() || self.format != Format::Json {
            true => self.write_number(field, &value),
            // JSON has no other numbers.
            false => self.write_number(field, &"null"),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write_number(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |this| {
            write_u64(this.line, value);
            Ok(())
        });
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.write_number(field, &value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.write_number(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write_number(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, |this| write_text(this.format, this.line, value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.write_shown(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write_shown(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Memory {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged(format: Format, events: impl FnOnce()) -> String {
        let memory = Memory::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(memory.clone())
            .event_format(Line { format, time: false })
            .finish();
        tracing::subscriber::with_default(subscriber, events);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn json(events: impl FnOnce()) -> Value {
        let line = logged(Format::Json, events);
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line:?}");
        serde_json::from_str(&line).expect(&line)
    }

    #[test]
    fn fields_follow_the_message() {
        let line = logged(Format::Text, || {
            tracing::info!(
                target: "AgentChannel",
                { peer.cn = "ct111", status = 200, share = 0.5, reused = true, path = %"/api/mesh", why = ?None::<u8> },
                "Request {}", "ended"
            );
        });
        let fields = "peer.cn=ct111 status=200 share=0.5 reused=true path=/api/mesh why=None";
        assert_eq!(line, format!("INFO [AgentChannel] Request ended {fields}\n"));
    }

    #[test]
    fn a_value_ends_where_it_seems_to_end() {
        let line = logged(Format::Text, || {
            tracing::warn!(
                target: "X", a = "", b = "a b", c = "k=v", d = "\"", e = %"x\ny=1\u{202e}", f = "é",
                "done"
            );
        });
        assert_eq!(line, "WARN [X] done a=\"\" b=\"a b\" c=\"k=v\" d=\"\\\"\" e=\"x y=1 \" f=\"é\"\n");
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let line = logged(
            Format::Text,
            || tracing::info!(target: "X", "a\nINFO [X] b\u{1b}[31m{}", "x".repeat(9000)),
        );
        assert!(line.starts_with("INFO [X] a INFO [X] b [31mxxx") && line.ends_with("x...\n"), "{line}");
        assert_eq!(line.chars().count(), "INFO [X] ".len() + MAX_MESSAGE_CHARS + "...\n".len());
    }

    #[test]
    fn json_keeps_names_and_types() {
        let line = json(|| {
            tracing::info!(
                target: "AgentChannel",
                { peer.cn = "ct111", status = 200, share = 0.5, nan = f64::NAN, reused = true, path = %"/a b",
                level = "x" },
                "He said \"hi\"\n\\ {}", "\u{202e}\u{7f}é\u{0}"
            );
        });
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
        let mut line = line.as_object().unwrap().clone();
        line.remove("time");
        assert_eq!(
            Value::Object(line),
            json!({
                "level": "INFO", "target": "AgentChannel", "message": "He said \"hi\"\n\\ \u{202e}\u{7f}é\u{0}",
                "peer.cn": "ct111", "status": 200, "share": 0.5, "nan": null, "reused": true, "path": "/a b",
                "field.level": "x",
            })
        );
    }

    #[test]
    fn nothing_in_json_acts_on_a_terminal() {
        let line = logged(
            Format::Json,
            || tracing::info!(target: "X", v = "\u{1b}[31m\u{202e}\u{9b}", "\u{2028}\r"),
        );
        assert!(line.trim_end().chars().all(|c| !is_hidden(c)), "{line:?}");
        let long = "é\"".repeat(5000);
        assert_eq!(
            json(|| tracing::info!(v = long, "x"))["v"].as_str().unwrap().chars().count(),
            MAX_VALUE_CHARS + 3
        );
    }

    #[test]
    fn dropped_lines_are_told_in_both_forms() {
        let lost = |format| Line { format, time: false }.lost(812);
        let words = "812 lines were dropped here, because nobody read the log fast enough";
        assert_eq!(lost(Format::Text), format!("WARN [Log] {words} dropped=812\n"));
        let line: Value = serde_json::from_str(&lost(Format::Json)).unwrap();
        assert_eq!((&line["message"], &line["dropped"]), (&json!(words), &json!(812)));
    }
}
