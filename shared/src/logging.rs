//! Logging, the same for all programs: the text form `<time> <LEVEL> [<Part>] <message> <key>=<value>…`, which is that
//! of the reference document, so that its `grep` recipes work, or one JSON object a line.
//!
//! A line never waits for whoever reads the log. Lines are queued, within a limit, and written by a thread of their
//! own; what does not fit is dropped and counted.

mod journal;
mod line;
mod outside_text;
mod record;
mod repeats;
mod writer;

use std::io::{self, IsTerminal};
use std::panic;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use journal::Journal;
use line::Line;
pub use outside_text::{Excerpt, Quoted, is_hidden};
pub use record::Record;
pub use repeats::{Repeats, Summary};
use writer::{Queue, STARTED};

/// Chooses the form of log lines, as `--log-format` does.
pub const FORMAT_VARIABLE: &str = "MESH_LOG_FORMAT";
/// How long a process waits at its end until its last lines are written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// `<time> <LEVEL> [<Part>] <message> <key>=<value>…`
    #[default]
    Text,
    /// A JSON object with time, level, target, message, and each further field under its own name
    Json,
    /// As text, with the fields marked for systemd's journal.
    #[value(skip)]
    Journal,
}

/// A log that was started. Lines that wait are written when it is dropped, within a limit.
#[must_use = "the last lines are written when it is dropped"]
pub struct Log(());

impl Drop for Log {
    fn drop(&mut self) {
        flush();
    }
}

/// Starts logging to stdout; stdout belongs to nothing else in a daemon. Panics are logged too.
///
/// `MESH_LOG` chooses what is shown (`info` by default, e.g. `debug` or `Outbound=debug`). Where systemd's journal reads
/// stdout, lines go to it directly, with their priorities and, apart from JSON, their fields; the time is left to it.
///
/// # Errors
/// The system gives no thread.
pub fn init(format: Format) -> io::Result<Log> {
    let filter = EnvFilter::try_from_env("MESH_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,pingora_core=warn,h2=error,mdns_sd=warn,hickory_resolver=warn")
    });
    let time = std::env::var_os("JOURNAL_STREAM").is_none() || io::stdout().is_terminal();
    let journal = Journal::of_stdout();
    let format = match (format, &journal) {
        (Format::Text, Some(_)) => Format::Journal,
        (format, _) => format,
    };
    let output: Box<dyn io::Write + Send> = match journal {
        Some(journal) => Box::new(journal),
        None => writer::stdout(),
    };
    let line = Line { format, time };
    let queue = Queue::start(output, line)?;
    let log = tracing_subscriber::fmt().log_internal_errors(false).with_writer(queue);
    // Fails only when logging was started already, as tests in one process may do.
    if log.with_env_filter(filter).event_format(line).try_init().is_ok() {
        let _ = STARTED.set((queue, line));
        // A backtrace that somebody asked for goes to stderr.
        if std::env::var_os("RUST_BACKTRACE").is_none() {
            panic::set_hook(Box::new(log_panic));
        }
    }
    Ok(Log(()))
}

/// Returns once all lines so far are written, or after a second: whoever reads the log may have stopped doing so.
pub fn flush() {
    repeats::sum_up_all();
    if let Some((queue, _)) = STARTED.get() {
        queue.flush(FLUSH_LIMIT);
    }
}

/// Lines of the log that were dropped because nobody read them fast enough.
pub fn dropped_lines() -> u64 {
    STARTED.get().map_or(0, |(queue, _)| queue.dropped())
}

/// On stderr, a panic could wait for ever for somebody to read it, and hold up whatever the thread does.
fn log_panic(info: &panic::PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(target: "Panic", "thread {thread} panicked at {place}: {message}");
}
