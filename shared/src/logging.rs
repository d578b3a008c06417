//! One log line format for all programs: `<time> <LEVEL> [<Part>] <message> <key>=<value>…`, the form of
//! the reference document, so that its `grep` recipes work.

use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging to stdout; stdout belongs to nothing else in a daemon.
///
/// `MESH_LOG` chooses what is shown (`info` by default, e.g. `debug` or `Outbound=debug`). Under systemd
/// the time is left to the journal.
pub fn init() {
    let filter = EnvFilter::try_from_env("MESH_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,pingora_core=warn,h2=error,mdns_sd=warn,hickory_resolver=warn")
    });
    let line = Line { time: std::env::var_os("JOURNAL_STREAM").is_none() || std::io::stdout().is_terminal() };
    // A log that nobody reads any more is no reason to fail; the default tells stderr, and panics if that is gone too.
    let log = tracing_subscriber::fmt().log_internal_errors(false);
    // Fails only when logging was started already, as tests in one process may do.
    let _ = log.with_env_filter(filter).event_format(line).try_init();
}

/// Lines of the log that were dropped because nobody read them fast enough.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Line {
    time: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.time {
            SystemTime.format_time(&mut writer)?;
            writer.write_char(' ')?;
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBUG",
            Level::TRACE => "TRACE",
        };
        write!(writer, "{level} [{}] ", event.metadata().target())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Text from outside on its way into a log line: one line, no control or direction-changing characters,
/// at most `max_chars` characters, with `...` where something was cut.
pub struct Excerpt<'a> {
    /// The text as it came.
    pub text: &'a str,
    /// Characters to show.
    pub max_chars: usize,
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        let mut chars = self.text.chars();
        for c in chars.by_ref().take(self.max_chars) {
            let hidden = c.is_control()
                || matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{2069}' | '\u{feff}');
            f.write_char(if hidden { ' ' } else { c })?;
        }
        if chars.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_short_line() {
        let show = |text, max_chars| Excerpt { text, max_chars }.to_string();
        assert_eq!(show("a\nb\u{202e}c\u{1b}[0m\u{61c}", 100), "a b c [0m ");
        assert_eq!(show("äöü!", 3), "äöü...");
        assert_eq!(show("äöü", 3), "äöü");
    }
}
