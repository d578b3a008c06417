//! Lines that are logged for each request, and so are made with little work.

use std::fmt::{self, Write};

use tracing::Level;

use super::Format;
use super::journal::DETAIL;
use super::line::{Line, give_back, take_string, write_key, write_message, write_text, write_u64};
use super::writer::{Queue, STARTED};

/// One line of level INFO, written without the detour by an event of `tracing`: for what is logged for each request.
///
/// The caller asks first whether the target is shown at all. A line that is not [ended](Self::end) is not written.
pub struct Record {
    form: Line,
    line: String,
    queue: &'static Queue,
}

impl Record {
    /// Begins a line with its message. `None` where no log was started.
    pub fn begin(target: &str, message: fmt::Arguments<'_>) -> Option<Self> {
        let (queue, form) = *STARTED.get()?;
        let mut line = take_string();
        // Writing to a String cannot fail; what is shown on it does not.
        let _ = form.head(&mut line, Level::INFO, target);
        let _ = write_message(form.format, &mut line, &message);
        Some(Self { form, line, queue })
    }

    /// Whether what the message says is in fields of its own too, by [`detail`](Self::detail).
    pub fn has_details(&self) -> bool {
        self.form.format != Format::Text
    }

    /// Adds text that the message says already, where that is wanted.
    pub fn detail(&mut self, name: &str, value: &str) {
        match self.form.format {
            Format::Text => {}
            Format::Json => self.text(name, value),
            Format::Journal => {
                let _ = write!(self.line, "{DETAIL}{name}=");
                let _ = write_text(self.form.format, &mut self.line, value);
            }
        }
    }

    /// Adds a number.
    pub fn number(&mut self, name: &str, value: impl Into<Option<u64>>) {
        if let Some(value) = value.into() {
            let _ = write_key(self.form.format, &mut self.line, name);
            write_u64(&mut self.line, value);
        }
    }

    /// Adds text.
    pub fn text<'t>(&mut self, name: &str, value: impl Into<Option<&'t str>>) {
        if let Some(value) = value.into() {
            let _ = write_key(self.form.format, &mut self.line, name);
            let _ = write_text(self.form.format, &mut self.line, value);
        }
    }

    /// Puts the line into the log.
    pub fn end(mut self) {
        let _ = self.form.end(&mut self.line);
        self.queue.push(self.line.as_bytes());
        give_back(self.line);
    }
}
