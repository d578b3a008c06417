//! What meshctl shows: text on stdout that ends quietly with its reader, tables, and colour on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub use mesh_ca::day;
use mesh_shared::logging::{Excerpt, is_hidden};
use mesh_shared::registry::Status;
use serde::Serialize;

/// Longest line of other hosts' text, in characters.
pub const LINE_CHARS: usize = 1_000;
/// Longest cell of a table, in characters.
const CELL_CHARS: usize = 60;

/// Writes `text` as it is.
///
/// # Errors
/// stdout is closed or full. A reader that went away (`BrokenPipe`) ends meshctl without a word.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes `value` as indented JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    print(&format!("{}\n", visible(json)))
}

/// Writes `value` as JSON on a line of its own.
///
/// # Errors
/// As [`print()`].
pub fn print_json_line(value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(value).map_err(io::Error::other)?;
    print(&format!("{}\n", visible(json)))
}

/// The same JSON, with characters escaped that could steer a terminal.
fn visible(json: String) -> String {
    let steers = |c: char| c != '\n' && is_hidden(c);
    if !json.contains(steers) {
        return json;
    }
    // All of them stand in texts, and have four digits.
    json.chars().fold(String::with_capacity(json.len()), |mut shown, c| {
        match steers(c) {
            true => shown.push_str(&format!("\\u{:04x}", c as u32)),
            false => shown.push(c),
        }
        shown
    })
}

/// Text of other hosts as one line that steers no terminal.
pub fn one_line(text: &str) -> String {
    Excerpt { text, max_chars: LINE_CHARS }.to_string()
}

/// Whether stdout is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether the command line asked for text without colour.
static PLAIN: AtomicBool = AtomicBool::new(false);

/// From now on nothing is coloured, whatever stdout is.
pub fn without_colour() {
    PLAIN.store(true, Ordering::Relaxed);
}

/// Whether colour helps: stdout is a terminal that can show it, and neither `NO_COLOR` (no-color.org) nor the command
/// line says otherwise.
pub fn coloured() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_terminal() && !is_dumb() && !unwanted && !PLAIN.load(Ordering::Relaxed)
}

/// Whether the terminal knows no control sequences.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// What empties the screen before something is shown once more; nothing where stdout is not a terminal that can.
pub fn clear() -> &'static str {
    if is_terminal() && !is_dumb() { "\x1b[H\x1b[2J" } else { "" }
}

/// One line on stderr that says what is being waited for, on a terminal that can show it and remove it again.
pub struct Progress(bool);

impl Progress {
    /// Shows nothing yet; never anything where `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self(!quiet && io::stderr().is_terminal() && is_terminal() && !is_dumb())
    }

    /// Shows this in place of what was shown before.
    pub fn say(&self, what: &str) {
        if self.0 {
            eprint!("\r\x1b[K{} …", Excerpt { text: what, max_chars: 60 });
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.0 {
            eprint!("\r\x1b[K");
        }
    }
}

/// How many characters stdout shows in a line, if it is a terminal that says so.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// How many lines stdout shows, if it is a terminal that says so.
pub fn terminal_height() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_row)).filter(|height| *height > 0)
}

/// A line without colours, cut where the terminal ends if stdout is one.
pub fn cut(line: &str) -> String {
    match terminal_width() {
        Some(width) if line.chars().count() > width => {
            line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
        }
        _ => line.into(),
    }
}

/// `1 request`, `2 requests`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A few colours of a terminal.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // the names say it
pub enum Colour {
    Green,
    Yellow,
    Red,
    Faint,
}

/// `text` in a colour, if [`coloured`].
pub fn paint(colour: Colour, text: &str) -> String {
    if coloured() { colour.paint(text) } else { text.into() }
}

impl Colour {
    fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Red => 31,
            Self::Faint => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A node's state in its colour.
pub fn status(status: Status) -> Cell {
    let colour = match status {
        Status::Online => Colour::Green,
        Status::Degraded | Status::Updating => Colour::Yellow,
        Status::Offline => Colour::Red,
    };
    Cell { text: status.as_str().into(), colour: Some(colour) }
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// Text in a colour.
    pub fn coloured(colour: Colour, text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), colour: None }
    }
}

/// Lines with aligned columns. What other hosts wrote cannot break a line or steer the terminal.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these headings.
    pub fn new(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(|heading| Cell::coloured(Colour::Faint, heading))] }
    }

    /// Adds a line.
    pub fn row(&mut self, cells: [Cell; N]) {
        let safe = |cell: Cell| Cell {
            text: Excerpt {
                text: if cell.text.is_empty() { "-" } else { &cell.text },
                max_chars: CELL_CHARS,
            }
            .to_string(),
            ..cell
        };
        self.rows.push(cells.map(safe));
    }

    /// The table with a final newline, its lines cut to the terminal's width where stdout is one.
    pub fn render(&self) -> String {
        self.lines(coloured(), terminal_width())
    }

    /// The table with a final newline, its lines as long as they come.
    pub fn render_whole(&self) -> String {
        self.lines(coloured(), None)
    }

    fn lines(&self, coloured: bool, max_width: Option<usize>) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].text.chars().count()).max();
        let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let gap = |column: usize| match column + 1 < N {
                true => widths[column] - row[column].text.chars().count() + 2,
                false => 0,
            };
            let length: usize = (0..N).map(|column| row[column].text.chars().count() + gap(column)).sum();
            // One place is for the mark of a line that continues.
            let cut = max_width.filter(|max| length > *max);
            let mut room = cut.map_or(usize::MAX, |max| max - 1);
            for (column, cell) in row.iter().enumerate() {
                let shown: String = cell.text.chars().take(room).collect();
                room -= shown.chars().count();
                text.push_str(&match cell.colour {
                    Some(colour) if coloured => colour.paint(&shown),
                    _ => shown,
                });
                let gap = gap(column).min(room);
                text.extend(std::iter::repeat_n(' ', gap));
                room -= gap;
            }
            text.push_str(if cut.is_some() { "…\n" } else { "\n" });
        }
        text
    }
}

/// A length of time in the unit a person would use: `850 ms`, `12 s`, `3 min`, `5 h`, `12 d`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_foreign_text_is_tamed() {
        let mut table = Table::new(["NODE", "STATUS"]);
        table.row(["ct110".into(), "a\nb\u{1b}[2J".into()]);
        table.row(["ünï-node-9".into(), "".into()]);
        assert_eq!(table.lines(false, None), "NODE        STATUS\nct110       a b [2J\nünï-node-9  -\n");
        assert_eq!(table.lines(false, Some(19)), table.lines(false, None));
    }

    #[test]
    fn lines_are_cut_where_the_terminal_ends() {
        let mut table = Table::new(["NODE", "STATUS"]);
        table.row(["ct110".into(), Cell::coloured(Colour::Green, "online")]);
        assert_eq!(table.lines(false, Some(13)), "NODE   STATUS\nct110  online\n");
        assert_eq!(table.lines(false, Some(10)), "NODE   ST…\nct110  on…\n");
        assert_eq!(table.lines(false, Some(6)), "NODE …\nct110…\n");
        assert!(table.lines(true, Some(10)).contains("\x1b[32mon\x1b[0m…"));
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(999), "999 ms");
        assert_eq!(duration(119_999), "119 s");
        assert_eq!(duration(120_000), "2 min");
        assert_eq!(duration(200_000_000), "2 d");
    }
}
