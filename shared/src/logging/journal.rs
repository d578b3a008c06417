//! Lines for systemd's journal, with their priorities and fields (systemd.io/JOURNAL_NATIVE_PROTOCOL).
//!
//! What is queued is a line of text whose fields begin with a mark. The thread that writes the log makes an entry of it:
//! the line itself as its message, so that `journalctl | grep` finds what it finds in a file, and each field as one of
//! the entry's, so that `journalctl MESH_TRACE_ID=…` finds it too.

use std::env;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Begins a field of a line.
pub const FIELD: char = '\u{1f}';
/// Begins a field that the line's message says already.
pub const DETAIL: char = '\u{1e}';

const SOCKET: &str = "/run/systemd/journal/socket";

/// The journal that reads this process' output.
pub struct Journal {
    socket: UnixDatagram,
    /// The entry that is being made.
    entry: Vec<u8>,
    /// What each entry begins with.
    beginning: Vec<u8>,
}

impl Journal {
    /// `None`: something else reads the standard output.
    pub fn of_stdout() -> Option<Self> {
        let stream = env::var("JOURNAL_STREAM").ok()?;
        let (device, inode) = stream.split_once(':')?;
        let stdout = rustix::fs::fstat(rustix::stdio::stdout()).ok()?;
        let is_stdout = device.parse() == Ok(stdout.st_dev) && inode.parse() == Ok(stdout.st_ino);
        if !is_stdout || !Path::new(SOCKET).exists() {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        let program = env::args_os().next().unwrap_or_default();
        let mut beginning = b"SYSLOG_IDENTIFIER=".to_vec();
        beginning.extend_from_slice(Path::new(&program).file_name().unwrap_or_default().as_bytes());
        beginning.push(b'\n');
        Some(Self { socket, entry: Vec::new(), beginning })
    }
}

impl Write for Journal {
    /// Takes whole lines. Waits while the journal does not read.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.entry.clear();
            self.entry.extend_from_slice(&self.beginning);
            write_entry(&mut self.entry, line.trim_ascii_end());
            match self.socket.send_to(&self.entry, SOCKET) {
                Ok(_) => done += line.len(),
                // What was sent is not sent again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the fields of a line's entry; no value has a line break in it.
fn write_entry(entry: &mut Vec<u8>, line: &[u8]) {
    let is_mark = |byte: &u8| [FIELD as u8, DETAIL as u8].contains(byte);
    let head = &line[..line.iter().position(is_mark).unwrap_or(line.len())];
    entry.extend_from_slice(b"PRIORITY=");
    entry.push(priority(head));
    if let Some(target) = target(head) {
        entry.extend_from_slice(b"\nMESH_TARGET=");
        entry.extend_from_slice(target);
    }
    entry.extend_from_slice(b"\nMESSAGE=");
    entry.extend_from_slice(head);
    for (mark, field) in marked(&line[head.len()..]) {
        if mark == FIELD as u8 {
            entry.push(b' ');
            entry.extend_from_slice(field);
        }
    }
    entry.push(b'\n');
    for (_, field) in marked(&line[head.len()..]) {
        let Some(at) = field.iter().position(|byte| *byte == b'=') else { continue };
        entry.extend_from_slice(b"MESH_");
        // Names in the journal have capital letters, digits and underscores.
        let capital = |byte: &u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' };
        entry.extend(field[..at].iter().map(capital));
        entry.push(b'=');
        write_bare(entry, &field[at + 1..]);
        entry.push(b'\n');
    }
}

/// The parts of a line that begin with a mark, without it.
fn marked(line: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let is_mark = |byte: &u8| [FIELD as u8, DETAIL as u8].contains(byte);
    let mut rest = line;
    std::iter::from_fn(move || {
        let (mark, after) = rest.split_first()?;
        let end = after.iter().position(is_mark).unwrap_or(after.len());
        rest = &after[end..];
        Some((*mark, &after[..end]))
    })
}

/// A value without the quotes that it has in a line.
fn write_bare(entry: &mut Vec<u8>, value: &[u8]) {
    let [b'"', quoted @ .., b'"'] = value else { return entry.extend_from_slice(value) };
    let mut escaped = false;
    for byte in quoted {
        escaped = *byte == b'\\' && !escaped;
        if !escaped {
            entry.push(*byte);
        }
    }
}

/// As syslog has them.
fn priority(head: &[u8]) -> u8 {
    let level = match head.starts_with(b"{") {
        // JSON: behind the time, in which there is nothing of the kind.
        true => after(head, b"\"level\":\""),
        false => Some(head),
    };
    match level {
        Some([b'E', ..]) => b'3',
        Some([b'W', ..]) => b'4',
        Some([b'D' | b'T', ..]) => b'7',
        _ => b'6',
    }
}

/// What stands between the first brackets of a line of text.
fn target(head: &[u8]) -> Option<&[u8]> {
    let inner = after(head, b" [").filter(|_| !head.starts_with(b"{"))?;
    Some(&inner[..inner.iter().position(|byte| *byte == b']')?])
}

fn after<'a>(text: &'a [u8], part: &[u8]) -> Option<&'a [u8]> {
    let at = text.windows(part.len()).position(|window| window == part)?;
    Some(&text[at + part.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &str) -> Vec<String> {
        let mut entry = Vec::new();
        write_entry(&mut entry, line.as_bytes());
        String::from_utf8(entry).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_the_message_and_its_fields_are_fields() {
        let line = "INFO [AgentChannel] Request peer.cn=ct110 GET /a\u{1e}peer.cn=ct110\u{1f}status=200\u{1f}error=\"a \\\"b\\\" \\\\ c=d\"";
        assert_eq!(
            entry(line),
            [
                "PRIORITY=6",
                "MESH_TARGET=AgentChannel",
                "MESSAGE=INFO [AgentChannel] Request peer.cn=ct110 GET /a status=200 error=\"a \\\"b\\\" \\\\ c=d\"",
                "MESH_PEER_CN=ct110",
                "MESH_STATUS=200",
                "MESH_ERROR=a \"b\" \\ c=d",
            ]
        );
    }

    #[test]
    fn levels_are_priorities() {
        for (line, priority) in [
            ("ERROR [Mesh] x", "3"),
            ("WARN [Mesh] x", "4"),
            ("INFO [Mesh] x", "6"),
            ("DEBUG [Mesh] x", "7"),
            ("TRACE [Mesh] x", "7"),
            ("{\"time\":\"2026\",\"level\":\"WARN\",\"target\":\"X\",\"message\":\"level\"}", "4"),
            ("", "6"),
        ] {
            assert_eq!(entry(line)[0], format!("PRIORITY={priority}"), "{line}");
        }
    }

    #[test]
    fn what_a_message_says_is_no_field() {
        let told = entry("WARN [Outbound] bad_request: x peer.cn=root MESSAGE=y PRIORITY=0");
        assert_eq!(told.len(), 3, "{told:?}");
    }
}
