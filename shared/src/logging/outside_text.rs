//! Text from outside on its way into a log line.

use std::fmt::{self, Write};

/// Characters that move the cursor, change the direction of writing, or cannot be seen.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Whether all of `text` is visible ASCII or spaces, as nearly all text is.
pub fn is_plain(text: &str) -> bool {
    plain_run(text.as_bytes()) == text.len()
}

/// How many bytes at the beginning are visible ASCII or spaces.
fn plain_run(bytes: &[u8]) -> usize {
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte);
    // Without a branch for each byte, so that one instruction looks at many of them.
    let is_plain_chunk = |chunk: &&[u8; 16]| chunk.iter().fold(true, |plain, byte| plain & is_plain(byte));
    let run = 16 * bytes.as_chunks().0.iter().take_while(is_plain_chunk).count();
    run + bytes[run..].iter().take_while(|byte| is_plain(byte)).count()
}

/// Text without a form of its own: one line, no control or direction-changing characters,
/// at most `max_chars` characters, with `...` where something was cut.
///
/// It can contain what looks like a field, ` peer.cn=ct110`; use [`Quoted`] for what anybody may write.
pub struct Excerpt<'a> {
    /// The text as it arrived.
    pub text: &'a str,
    /// Characters to show.
    pub max_chars: usize,
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Visible::new(f, self.max_chars).write_str(self.text)
    }
}

/// Text between double quotes, with `"` and `\` in it escaped: nothing in it passes for a field of the line. One
/// line, no control or direction-changing characters, at most `max_chars` characters, with `...` where something was
/// cut.
pub struct Quoted<'a> {
    /// The text as it arrived.
    pub text: &'a str,
    /// Characters to show, escapes not counted.
    pub max_chars: usize,
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        Visible::new(Escaped(&mut *f), self.max_chars).write_str(self.text)?;
        f.write_char('"')
    }
}

/// Passes on what can be seen, with a space for each other character, and no more than a number of characters.
pub struct Visible<W> {
    inner: W,
    /// `None`: the text was cut.
    left: Option<usize>,
}

impl<W: Write> Visible<W> {
    /// Passes at most `max_chars` characters to `inner`.
    pub fn new(inner: W, max_chars: usize) -> Self {
        Self { inner, left: Some(max_chars) }
    }
}

impl<W: Write> Write for Visible<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Some(mut left) = self.left else { return Ok(()) };
        let mut rest = text;
        loop {
            // Nearly all text is plain, and passes in one piece.
            let run = plain_run(&rest.as_bytes()[..rest.len().min(left)]);
            let (plain, tail) = rest.split_at(run);
            self.inner.write_str(plain)?;
            left -= run;
            self.left = Some(left);
            let Some(c) = tail.chars().next() else { return Ok(()) };
            if left == 0 {
                self.left = None;
                return self.inner.write_str("...");
            }
            self.inner.write_char(if is_hidden(c) { ' ' } else { c })?;
            left -= 1;
            rest = &tail[c.len_utf8()..];
        }
    }
}

/// Puts a backslash before each `"` and `\`.
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(['"', '\\']) {
            match piece.strip_suffix(['"', '\\']) {
                Some(before) => {
                    self.0.write_str(before)?;
                    self.0.write_char('\\')?;
                    self.0.write_str(&piece[before.len()..])?;
                }
                None => self.0.write_str(piece)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_short_line() {
        let show = |text: &str, max_chars| Excerpt { text, max_chars }.to_string();
        assert_eq!(show("a\nb\u{202e}c\u{1b}[0m\u{61c}", 100), "a b c [0m ");
        assert_eq!(show("äöü!", 3), "äöü...");
        assert_eq!(show("äöü", 3), "äöü");
        assert_eq!(show("abcd", 3), "abc...");
        assert_eq!(show("", 0), "");
        for at in 0..40 {
            let text = format!("{}\n{}", "x".repeat(at), "y".repeat(40));
            assert_eq!(show(&text, 100), text.replace('\n', " "));
            assert_eq!(show(&text, at), format!("{}...", "x".repeat(at)));
        }
    }

    #[test]
    fn nothing_leaves_its_quotes() {
        let show = |text, max_chars| Quoted { text, max_chars }.to_string();
        assert_eq!(show("news peer.cn=ct110", 100), r#""news peer.cn=ct110""#);
        assert_eq!(show(r#"" peer.cn=ct110 ""#, 100), r#""\" peer.cn=ct110 \"""#);
        assert_eq!(show(r#"\" peer.cn=ct110"#, 100), r#""\\\" peer.cn=ct110""#);
        assert_eq!(show("\\", 1), r#""\\""#);
        assert_eq!(show("a\"bc", 2), r#""a\"...""#);
        assert_eq!(show("a\nb\u{202e}c\u{7f}", 100), "\"a b c \"");
        assert_eq!(show("", 10), "\"\"");
    }
}
