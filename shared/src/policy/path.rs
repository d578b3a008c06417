//! Paths as rules compare them. A path that servers could take for different ones has no reading at all; where only
//! case or parameters (`;…`) differ, it has several, and each must be allowed. Pure.

use std::fmt;
use std::str::FromStr;

/// What a path may be taken for: without escapes, split at `/`, without a `/` at its end.
pub(super) type Reading = Vec<String>;

/// Everything that a server may take `path` for.
///
/// # Errors
/// What in it some servers read in one way and some in another. Fails closed.
pub(super) fn readings(path: &str) -> Result<Vec<Reading>, &'static str> {
    // OPTIONS for the server as a whole.
    if path == "*" {
        return Ok(vec![vec!["*".into()]]);
    }
    let Some(rest) = path.strip_prefix('/') else { return Err("does not begin with /") };
    let decoded = decode(rest)?;
    check(&decoded)?;
    let rest = decoded.strip_suffix('/').unwrap_or(&decoded);
    if rest.is_empty() {
        return if decoded.is_empty() { Ok(vec![Vec::new()]) } else { Err("has an empty segment (//)") };
    }
    let (mut whole, mut bare) = (Reading::new(), Reading::new());
    for segment in rest.split('/') {
        let name = segment.split(';').next().unwrap_or_default();
        check_segment(segment, name)?;
        whole.push(segment.to_owned());
        bare.push(name.to_owned());
    }
    let mut all = vec![whole];
    for more in [bare.clone(), folded(&all[0]), folded(&bare)] {
        if !all.contains(&more) {
            all.push(more);
        }
    }
    Ok(all)
}

fn folded(reading: &Reading) -> Reading {
    reading.iter().map(|segment| segment.to_lowercase()).collect()
}

/// Undoes escapes, once. Whatever separates parts of a URL must not be hidden behind one.
fn decode(escaped: &str) -> Result<String, &'static str> {
    let mut decoded = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| (digit as char).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err("has a % that is not followed by two hexadecimal digits");
                };
                let byte = (high * 16 + low) as u8;
                if matches!(byte, b'/' | b'?' | b'#') {
                    return Err("has an escaped /, ? or # (%2f, %3f, %23)");
                }
                decoded.push(byte);
            }
            b'?' | b'#' => return Err("has a ? or # in it"),
            0x80.. => return Err("has bytes that are not ASCII and not escaped"),
            byte => decoded.push(byte),
        }
    }
    let decoded = String::from_utf8(decoded).map_err(|_| "is not UTF-8 once its escapes are undone")?;
    let is_escape = |at: usize| {
        let digits = decoded.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    // `%u002f` is how some servers write one.
    let is_wide = |at: usize| decoded.as_bytes().get(at + 1).is_some_and(|next| matches!(next, b'u' | b'U'));
    match decoded.match_indices('%').any(|(at, _)| is_escape(at) || is_wide(at)) {
        true => Err("is escaped twice"),
        false => Ok(decoded),
    }
}

fn check(decoded: &str) -> Result<(), &'static str> {
    for character in decoded.chars() {
        match character {
            '\\' => return Err("has a \\, which some servers take for /"),
            _ if character.is_control() => return Err("has a control character"),
            _ if folds_to_ascii(character) => {
                return Err("has a character that some servers take for an ASCII one");
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_segment(segment: &str, name: &str) -> Result<(), &'static str> {
    match name {
        "" if segment.is_empty() => Err("has an empty segment (//)"),
        "" => Err("has a segment of parameters alone"),
        // `..`, `.` and what Windows takes for them, or for the name without it.
        _ if name.ends_with(['.', ' ']) || segment.ends_with(['.', ' ']) => {
            Err("has a segment that ends in a dot or a space, such as . or ..")
        }
        // Of a file's streams on Windows.
        _ if name.contains("::$") => Err("has a segment with ::$"),
        _ => Ok(()),
    }
}

/// Whether compatibility folding (Unicode Standard Annex 15) or case folding may turn it into ASCII: whole blocks, since
/// a refusal too many is harmless.
fn folds_to_ascii(character: char) -> bool {
    matches!(
        character,
        '\u{a0}'..='\u{bf}'         // ordinals and superscript digits
            | '\u{131}' | '\u{130}' | '\u{132}' | '\u{133}' | '\u{17f}' | '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}'
            | '\u{2b0}'..='\u{2ff}' // modifier letters
            | '\u{300}'..='\u{36f}' // combining marks, which may be dropped
            | '\u{37e}'             // the Greek question mark is ;
            | '\u{1d2c}'..='\u{1dbf}'
            | '\u{1e9a}' | '\u{1fef}'
            | '\u{2000}'..='\u{2bff}' // punctuation, letterlike, number forms, operators, enclosed
            | '\u{3000}'..='\u{33ff}'
            | '\u{fb00}'..='\u{fb4f}'
            | '\u{fe00}'..='\u{feff}'
            | '\u{ff00}'..='\u{ffff}'
            | '\u{1d400}'..='\u{1d7ff}'
            | '\u{1f100}'..='\u{1f2ff}'
            | '\u{e0000}'..
    )
}

/// Which paths a rule is for: `/api/message` for this one, `/api/*` for those with one more segment, `/api/**` for
/// `/api` and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    and_below: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Any,
    Named { exact: String, folded: String },
}

impl PathPattern {
    /// Whether it covers this reading; one whose case was folded is compared without case.
    pub(super) fn covers(&self, reading: &Reading) -> bool {
        let enough = match self.and_below {
            true => reading.len() >= self.segments.len(),
            false => reading.len() == self.segments.len(),
        };
        let all = |which: fn(&Segment) -> Option<&str>| {
            let each = self.segments.iter().zip(reading);
            each.into_iter().all(|(wanted, found)| which(wanted).is_none_or(|wanted| wanted == found))
        };
        enough && (all(Segment::exact) || (*reading == folded(reading) && all(Segment::folded)))
    }
}

impl Segment {
    fn exact(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Named { exact, .. } => Some(exact),
        }
    }

    fn folded(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Named { folded, .. } => Some(folded),
        }
    }
}

impl FromStr for PathPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("{text:?} {why}; expected a path such as /api/message, /api/* or /api/**");
        let rest = text.strip_prefix('/').ok_or_else(|| wrong("does not begin with /"))?;
        if text.contains(['%', ';', '?', '#']) {
            return Err(wrong("has an escape, parameters or a query; write the path as it is once decoded"));
        }
        let (rest, and_below) = match rest.strip_suffix("**") {
            Some(rest) if rest.is_empty() || rest.ends_with('/') => (rest.trim_end_matches('/'), true),
            Some(_) => return Err(wrong("has ** inside a segment")),
            None => (rest, false),
        };
        let mut segments = Vec::new();
        for segment in rest.split('/').filter(|_| !rest.is_empty()) {
            check(segment).and_then(|()| check_segment(segment, segment)).map_err(wrong)?;
            segments.push(match segment {
                "*" => Segment::Any,
                name if name.contains('*') => return Err(wrong("has * inside a segment")),
                name => Segment::Named { exact: name.into(), folded: name.to_lowercase() },
            });
        }
        Ok(Self { segments, and_below })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            write!(f, "/{}", segment.exact().unwrap_or("*"))?;
        }
        match (self.and_below, self.segments.is_empty()) {
            (true, _) => f.write_str("/**"),
            (false, true) => f.write_str("/"),
            (false, false) => Ok(()),
        }
    }
}
