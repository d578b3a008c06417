//! PEM files (RFC 7468), read strictly: every block is either returned or named as a mistake, with its line.
//!
//! Text around blocks, a byte order mark, CRLF and blocks that share a line are all accepted, since editors and `cat` make
//! them. What looks like a block and cannot be read is an error: nothing is lost silently.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// Some tools leave the padding out; bits that belong to no byte are refused.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// What is wrong in a PEM file, and where. In words that follow the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Mistake {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// One block of a PEM file, framed but not decoded.
#[derive(Debug)]
pub struct Block<'t> {
    /// What stands between `BEGIN` and the dashes.
    pub label: &'t str,
    /// The line of `BEGIN`, counted from 1.
    pub line: usize,
    body: &'t str,
}

/// The blocks of a file in the order in which they stand there.
///
/// # Errors
/// The first block that is cut off, damaged, or not closed by the marker that belongs to it; a file in UTF-16 or DER.
pub fn blocks(file: &str) -> Result<Vec<Block<'_>>, Mistake> {
    if let Some(encoding) = foreign_encoding(file) {
        return Err(Mistake { line: 1, reason: encoding.into() });
    }
    let mut blocks = Vec::new();
    let mut at = 0;
    loop {
        let Some(begin) = next_marker(file, at)? else {
            no_damaged_marker(file, at, file.len())?;
            return Ok(blocks);
        };
        no_damaged_marker(file, at, begin.start)?;
        let line = line_of(file, begin.start);
        if begin.is_end {
            let reason = format!("\"{END}{}{DASHES}\" ends a block that does not begin", begin.label);
            return Err(Mistake { line, reason });
        }
        let label = begin.label;
        let cut_off = |found: String| Mistake {
            line,
            reason: format!("the block {label} has no \"{END}{label}{DASHES}\"{found}; is the file cut off?"),
        };
        match next_marker(file, begin.end)? {
            Some(end) if end.is_end && end.label == label => {
                blocks.push(Block { label, line, body: &file[begin.end..end.start] });
                at = end.end;
            }
            Some(other) => {
                let what = if other.is_end { "ends" } else { "begins" };
                let there = line_of(file, other.start);
                return Err(cut_off(format!(" before line {there}, where {} {what}", other.label)));
            }
            None => return Err(cut_off(String::new())),
        }
    }
}

impl Block<'_> {
    /// Whether it holds a certificate.
    ///
    /// # Errors
    /// A certificate in a form that only openssl reads, which must not be passed over.
    pub fn is_certificate(&self) -> Result<bool, Mistake> {
        match self.label {
            // The second is what openssl before 0.9 wrote; RFC 7468, section 5.1, lets readers accept it.
            "CERTIFICATE" | "X509 CERTIFICATE" => Ok(true),
            "TRUSTED CERTIFICATE" => Err(self.mistake(
                "a TRUSTED CERTIFICATE is openssl's own form; write it out with `openssl x509 -in FILE -out FILE.pem`",
            )),
            _ => Ok(false),
        }
    }

    /// Whether it holds a private key, encrypted or not.
    pub fn is_private_key(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
    }

    /// Whether it needs a passphrase, in PKCS#8 or in openssl's older form (RFC 1421).
    pub fn is_encrypted(&self) -> bool {
        self.label.starts_with("ENCRYPTED ")
            || self
                .body
                .lines()
                .any(|line| line.trim().starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
    }

    /// What it holds, decoded.
    ///
    /// # Errors
    /// The line that is not base64, or a block with characters missing.
    pub fn der(&self) -> Result<Zeroizing<Vec<u8>>, Mistake> {
        for (i, line) in self.body.lines().enumerate() {
            let bad =
                |c: &char| !(c.is_ascii_alphanumeric() || "+/=".contains(*c) || c.is_ascii_whitespace());
            if let Some(found) = line.chars().find(bad) {
                let line = self.line + i;
                return Err(Mistake { line, reason: format!("{found:?} is not a character of base64") });
            }
        }
        let mut characters = Zeroizing::new(Vec::with_capacity(self.body.len()));
        characters.extend(self.body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        // Long enough at once, so that no part of a key is left behind by growing.
        let mut der = Zeroizing::new(vec![0; characters.len() / 4 * 3 + 3]);
        match BASE64.decode_slice(&*characters, &mut der) {
            Ok(0) => Err(self.mistake("the block is empty")),
            Ok(length) => {
                der.truncate(length);
                Ok(der)
            }
            Err(_) => {
                Err(self.mistake("the block is damaged: its base64 has characters missing or too many"))
            }
        }
    }

    /// The block by itself in its usual form, with a final newline.
    pub fn text(&self) -> Zeroizing<String> {
        let label = match self.label {
            "X509 CERTIFICATE" => "CERTIFICATE",
            label => label,
        };
        // Reserved at once, so that no part of a key is left behind by growing.
        let mut text = Zeroizing::new(String::with_capacity(self.body.len() * 2 + 128));
        text.extend([BEGIN, label, DASHES, "\n"]);
        let characters = self.body.chars().filter(|c| !c.is_ascii_whitespace());
        for (i, c) in characters.enumerate() {
            if i > 0 && i % 64 == 0 {
                text.push('\n');
            }
            text.push(c);
        }
        text.extend(["\n", END, label, DASHES, "\n"]);
        text
    }

    /// Something that is wrong with this block.
    pub fn mistake(&self, reason: impl Into<String>) -> Mistake {
        Mistake { line: self.line, reason: reason.into() }
    }
}

struct Marker<'t> {
    is_end: bool,
    label: &'t str,
    /// Its bytes in the file, dashes included.
    start: usize,
    end: usize,
}

/// The next marker that begins at `at` or behind it.
fn next_marker(file: &str, at: usize) -> Result<Option<Marker<'_>>, Mistake> {
    let rest = &file[at..];
    let first = |marker: &str| rest.find(marker).map(|found| found + at);
    let (start, is_end) = match (first(BEGIN), first(END)) {
        (Some(begin), Some(end)) if end < begin => (end, true),
        (Some(begin), _) => (begin, false),
        (None, Some(end)) => (end, true),
        (None, None) => return Ok(None),
    };
    let label_start = start + if is_end { END.len() } else { BEGIN.len() };
    let line = file[label_start..].lines().next().unwrap_or_default();
    let Some((label, _)) = line.split_once(DASHES) else {
        let reason = format!("{:?} does not end with five dashes", excerpt(&file[start..]));
        return Err(Mistake { line: line_of(file, start), reason });
    };
    let end = label_start + label.len() + DASHES.len();
    Ok(Some(Marker { is_end, label: label.trim(), start, end }))
}

/// A marker that lost some of its dashes would hide a block.
fn no_damaged_marker(file: &str, from: usize, to: usize) -> Result<(), Mistake> {
    let damaged = |line: &str| {
        let words = line.trim_matches(|c: char| c == '-' || c.is_whitespace());
        line.contains('-')
            && (words.starts_with("BEGIN ") || words.starts_with("END "))
            && ["CERTIFICATE", "X509 CRL", "PRIVATE KEY"].iter().any(|label| words.ends_with(label))
    };
    match file[from..to].lines().enumerate().find(|(_, line)| damaged(line)) {
        Some((i, line)) => {
            let reason =
                format!("{:?} is a damaged marker; five dashes belong on either side", excerpt(line));
            Err(Mistake { line: line_of(file, from) + i, reason })
        }
        None => Ok(()),
    }
}

fn foreign_encoding(file: &str) -> Option<&'static str> {
    match file.as_bytes() {
        // Bytes that are not UTF-8 are replaced before; of UTF-16 there remain the zeros between the letters.
        bytes if bytes.iter().take(64).filter(|byte| **byte == 0).count() > 8 && !file.contains(BEGIN) => {
            Some("the text is in UTF-16, not ASCII; save it as UTF-8")
        }
        [0x30, ..] if !file.contains(BEGIN) => {
            Some("this is DER, not PEM; convert it (`openssl x509 -inform DER -in FILE -out FILE.pem`)")
        }
        _ => None,
    }
}

fn line_of(file: &str, at: usize) -> usize {
    file.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn excerpt(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----";

    fn found(file: &str) -> Result<Vec<(String, usize, Vec<u8>)>, String> {
        let blocks = blocks(file).map_err(|mistake| mistake.to_string())?;
        let decoded = blocks.iter().map(|block| {
            let der = block.der().map_err(|mistake| mistake.to_string())?;
            Ok((block.label.to_owned(), block.line, der.to_vec()))
        });
        decoded.collect()
    }

    #[test]
    fn no_block_is_lost() {
        let at = |line| ("CERTIFICATE".to_owned(), line, vec![0, 1, 2]);
        for (file, lines) in [
            (ONE.to_owned(), vec![1]),
            (format!("{ONE}\n{ONE}\n"), vec![1, 4]),
            (format!("{ONE}{ONE}"), vec![1, 3]),
            (format!("\u{feff}{ONE}\n{ONE}"), vec![1, 4]),
            (format!("subject=CN=x\nissuer=CN=y\n{ONE}\nabout - END of it\n{ONE} tail"), vec![3, 7]),
            (ONE.replace('\n', "\r\n"), vec![1]),
            (format!("  {}", ONE.replace('\n', "  \n  ")), vec![1]),
            (ONE.replace("AAEC", "AA\n\nEC"), vec![1]),
            ("nothing here".into(), vec![]),
        ] {
            assert_eq!(found(&file), Ok(lines.into_iter().map(at).collect()), "{file:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let key = ONE.replace("CERTIFICATE", "PRIVATE KEY");
        for (file, line, word) in [
            (format!("x\n{}", &ONE[..34]), 2, "cut off"),
            (format!("{}\n{ONE}", &ONE[..32]), 1, "before line 3"),
            (ONE.replace("END CERTIFICATE", "END PRIVATE KEY"), 1, "PRIVATE KEY ends"),
            (format!("{ONE}\n-----END CERTIFICATE-----"), 4, "does not begin"),
            (ONE.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE---"), 1, "five dashes"),
            (format!("{ONE}\n{}", ONE.replace("-----", "----")), 4, "damaged marker"),
            (ONE.replace("AAEC", "AAECA"), 1, "damaged"),
            (ONE.replace("AAEC", "AAEC\nA*EC"), 3, "'*'"),
            (ONE.replace("AAEC\n", ""), 1, "empty"),
            (format!("{key}\n{}", key.replace("AAEC", "A")), 4, "damaged"),
            ("-\0-\0-\0-\0-\0B\0E\0G\0I\0N\0 \0".into(), 1, "UTF-16"),
            ("0\u{82}\u{1}".into(), 1, "DER"),
        ] {
            let error = found(&file).unwrap_err();
            assert!(
                error.starts_with(&format!("line {line}: ")) && error.contains(word),
                "{file:?}: {error}"
            );
        }
    }

    #[test]
    fn both_forms_of_encrypted_keys_are_known() {
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAEC\n-----END RSA PRIVATE KEY-----";
        let new = ONE.replace("CERTIFICATE", "ENCRYPTED PRIVATE KEY");
        for (file, encrypted) in
            [(old, true), (&new, true), (&ONE.replace("CERTIFICATE", "PRIVATE KEY"), false)]
        {
            let blocks = blocks(file).unwrap();
            assert!(blocks[0].is_private_key());
            assert_eq!(blocks[0].is_encrypted(), encrypted);
        }
    }
}
