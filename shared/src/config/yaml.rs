//! Reading a YAML document key by key, with every mistake kept until the end. The only user of
//! `serde_yaml`.
//!
//! `serde_yaml` tells positions only in its own errors. So the line of a mistake is found by walking to it
//! once more and failing there on purpose; that happens only for files that have mistakes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

/// One mistake (or, among warnings, one remark) in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key with its sections, as in `mesh.discovery.mode`; empty for the file as a whole.
    pub key: String,
    /// Line of the key or of the section that misses it, from 1; `None` where there is no place.
    pub line: Option<usize>,
    /// What is there and what is expected.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        match self.key.as_str() {
            "" => write!(f, "{}", self.message),
            key => write!(f, "{key}: {}", self.message),
        }
    }
}

/// A parsed file with the mistakes found in it so far.
pub(super) struct Document<'t> {
    text: &'t str,
    root: Value,
    mistakes: RefCell<Vec<Mistake>>,
}

/// The way to a value: keys, and positions in lists.
type Path = Vec<Step>;

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

impl<'t> Document<'t> {
    /// # Errors
    /// Text that is no YAML mapping at all.
    pub(super) fn parse(text: &'t str) -> Result<Self, Mistake> {
        // YAML allows none of these, and serde_yaml does not tell their line.
        let forbidden = |c: char| {
            c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')
                || matches!(c, '\u{fffe}' | '\u{ffff}')
        };
        if let Some((at, found)) = text.char_indices().find(|(_, c)| forbidden(*c)) {
            return Err(Mistake {
                key: String::new(),
                line: Some(text[..at].split('\n').count()),
                message: format!("not valid YAML: the character {found:?} cannot stand in it"),
            });
        }
        let root: Value = serde_yaml::from_str(text).map_err(|error| Mistake {
            key: String::new(),
            line: error.location().map(|at| at.line()),
            message: format!("not valid YAML: {error}"),
        })?;
        let root = match root {
            Value::Null => Value::Mapping(Mapping::new()),
            Value::Mapping(_) => root,
            other => {
                let here = Locate { path: &[], at_key: false };
                let found = here.deserialize(serde_yaml::Deserializer::from_str(text)).err();
                return Err(Mistake {
                    key: String::new(),
                    line: found.and_then(|error| error.location()).map(|at| at.line()),
                    message: format!("expected sections such as mesh:, found {}", shown(&other)),
                });
            }
        };
        Ok(Self { text, root, mistakes: RefCell::default() })
    }

    /// The named top-level section; an absent one reads as empty, others are ignored.
    pub(super) fn section(&self, name: &str) -> Section<'_> {
        let path = vec![Step::Key(name.into())];
        let value = self.root.get(name).unwrap_or(&Value::Null);
        Section::new(self, path, value)
    }

    /// Adds a mistake that concerns several keys together.
    pub(super) fn mistake(&self, key: &str, message: impl Into<String>) {
        let path: Path = key.split('.').map(|part| Step::Key(part.into())).collect();
        self.report(&path, message.into());
    }

    /// Everything that was wrong, in the file's order.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| mistake.line);
        mistakes
    }

    fn report(&self, path: &Path, message: String) {
        let mistake = Mistake { key: dotted(path), line: self.line_of(path), message };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// The line of the value at `path`, or of the nearest section around it that exists.
    fn line_of(&self, path: &Path) -> Option<usize> {
        (1..=path.len()).rev().find_map(|length| {
            let seed = Locate { path: &path[..length], at_key: true };
            let outcome = seed.deserialize(serde_yaml::Deserializer::from_str(self.text));
            outcome.err().and_then(|error| error.location()).map(|at| at.line())
        })
    }
}

fn dotted(path: &Path) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// A mapping that is read key by key; what was not asked for is a mistake at [`Section::finish`].
pub(super) struct Section<'d> {
    document: &'d Document<'d>,
    path: Path,
    map: Option<&'d Mapping>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'d> Section<'d> {
    fn new(document: &'d Document<'d>, path: Path, value: &'d Value) -> Self {
        let map = match value {
            Value::Mapping(map) => Some(map),
            Value::Null => None,
            other => {
                document.report(&path, format!("expected keys and values, found {}", shown(other)));
                None
            }
        };
        Self { document, path, map, asked: RefCell::default() }
    }

    fn at(&self, key: &str) -> Path {
        let mut path = self.path.clone();
        path.push(Step::Key(key.into()));
        path
    }

    /// The value at `key`; `null` counts as absent.
    fn value(&self, key: &'static str) -> Option<&'d Value> {
        self.asked.borrow_mut().push(key);
        self.map?.get(key).filter(|value| !value.is_null())
    }

    /// Adds a mistake about `key`.
    pub(super) fn mistake(&self, key: &str, message: impl Into<String>) {
        self.document.report(&self.at(key), message.into());
    }

    /// Whether `key` is there, whatever its value.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// `true` or `false`.
    pub(super) fn bool(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.as_bool();
        if found.is_none() {
            self.mistake(key, format!("expected true or false, found {}", shown(value)));
        }
        found
    }

    /// `true` or `false`; `None` without a mistake where it is a section instead.
    pub(super) fn bool_or_section(&self, key: &'static str) -> Option<bool> {
        match self.value(key)? {
            Value::Mapping(_) => None,
            Value::Bool(value) => Some(*value),
            other => {
                self.mistake(key, format!("expected true, false or a section, found {}", shown(other)));
                None
            }
        }
    }

    /// A whole number within `range`.
    pub(super) fn number(&self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let found = value.as_u64().filter(|number| range.contains(number));
        if found.is_none() {
            let (from, to) = (range.start(), range.end());
            self.mistake(key, format!("expected a whole number from {from} to {to}, found {}", shown(value)));
        }
        found
    }

    /// A text.
    pub(super) fn string(&self, key: &'static str) -> Option<String> {
        text(self.value(key)?)
            .map_err(|found| self.mistake(key, format!("expected a text, found {found}")))
            .ok()
    }

    /// A text that has the form of a `T`.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<T> {
        let text = self.string(key)?;
        text.parse().map_err(|error: T::Err| self.mistake(key, error.to_string())).ok()
    }

    /// A list of texts that have the form of a `T`; one text alone counts as a list of one.
    pub(super) fn list<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<Vec<T>> {
        let parse = |path: &Path, value: &Value| {
            let report = |message| self.document.report(path, message);
            let text = text(value).map_err(|found| report(format!("expected a text, found {found}"))).ok()?;
            text.parse().map_err(|error: T::Err| report(error.to_string())).ok()
        };
        match self.value(key)? {
            Value::Sequence(items) => Some(
                items.iter().enumerate().filter_map(|(i, item)| parse(&self.item(key, i), item)).collect(),
            ),
            value => parse(&self.at(key), value).map(|only| vec![only]),
        }
    }

    /// A list whose members are sections, or, where `or_text` allows it, bare texts.
    pub(super) fn sections(&self, key: &'static str, or_text: bool) -> Vec<Item<'d>> {
        let items = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Sequence(items)) => items,
            Some(other) => {
                self.mistake(key, format!("expected a list, found {}", shown(other)));
                return Vec::new();
            }
        };
        let member = |(i, value): (usize, &'d Value)| match value {
            Value::String(text) if or_text => Item::Text(text.clone()),
            value => Item::Section(Section::new(self.document, self.item(key, i), value)),
        };
        items.iter().enumerate().map(member).collect()
    }

    /// Adds a mistake about a member of the list at `key`.
    pub(super) fn mistake_at(&self, key: &str, index: usize, message: impl Into<String>) {
        self.document.report(&self.item(key, index), message.into());
    }

    fn item(&self, key: &str, index: usize) -> Path {
        let mut path = self.at(key);
        path.push(Step::Index(index));
        path
    }

    /// A section inside this one; an absent one reads as empty.
    pub(super) fn section(&self, key: &'static str) -> Section<'d> {
        Section::new(self.document, self.at(key), self.value(key).unwrap_or(&Value::Null))
    }

    /// Any mapping, as JSON.
    pub(super) fn json_map(&self, key: &'static str) -> Option<serde_json::Map<String, serde_json::Value>> {
        let value = self.value(key)?;
        match serde_json::to_value(value) {
            Ok(serde_json::Value::Object(map)) => Some(map),
            _ => {
                self.mistake(key, format!("expected keys (texts) and values, found {}", shown(value)));
                None
            }
        }
    }

    /// Reports the keys that nobody asked for, with the nearest one that exists.
    pub(super) fn finish(self) {
        let asked = self.asked.into_inner();
        for key in self.map.into_iter().flat_map(Mapping::keys) {
            let key = match key {
                Value::String(key) => key.clone(),
                other => shown(other),
            };
            if asked.contains(&key.as_str()) {
                continue;
            }
            let near = asked
                .iter()
                .map(|known| (strsim::damerau_levenshtein(&key, known), known))
                .filter(|(distance, known)| *distance <= known.len().max(key.len()) / 2)
                .min();
            let hint = match near {
                Some((_, known)) => format!("did you mean {known}?"),
                None => format!("known here: {}", asked.join(", ")),
            };
            let mut path = self.path.clone();
            path.push(Step::Key(key));
            self.document.report(&path, format!("unknown key; {hint}"));
        }
    }
}

/// A member of a list.
pub(super) enum Item<'d> {
    Text(String),
    Section(Section<'d>),
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{} (put it in quotes if it is one)", shown(other))),
    }
}

/// A value in a few words, for error texts. Long texts are cut, and nothing is shown of what may be a secret.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(text) if text.chars().count() > 60 => "a long text".into(),
        Value::String(text) => format!("the text {text:?}"),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "a section".into(),
        Value::Tagged(tagged) => format!("a value tagged {}", tagged.tag),
    }
}

/// Walks to `path` and fails there, so that the error carries the place.
struct Locate<'p> {
    path: &'p [Step],
    at_key: bool,
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the way to a mistake")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.path.split_first() else {
            if self.path.is_empty() {
                return Err(A::Error::custom("here"));
            }
            // What is not read to its end is an error of its own.
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let last = rest.is_empty() && self.at_key;
        while let Some(found) = map.next_key_seed(Key { wanted, last })? {
            match found {
                true => map.next_value_seed(Locate { path: rest, at_key: self.at_key })?,
                false => map.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.path.split_first() else {
            if self.path.is_empty() {
                return Err(A::Error::custom("here"));
            }
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        for _ in 0..*wanted {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate { path: rest, at_key: self.at_key })?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }
    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }
    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

impl Locate<'_> {
    fn scalar<E: serde::de::Error>(self) -> Result<(), E> {
        if self.path.is_empty() { Err(E::custom("here")) } else { Ok(()) }
    }
}

/// Compares a key; fails at it when it is the last step.
struct Key<'p> {
    wanted: &'p str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.last => Err(E::custom("here")),
            found => Ok(found),
        }
    }
}

/// Names that must not stand twice in a list.
pub(super) fn repeated<T: Ord + Clone>(items: &[T]) -> Vec<(usize, T)> {
    let mut first = BTreeMap::new();
    let mut again = Vec::new();
    for (i, item) in items.iter().enumerate() {
        if first.insert(item.clone(), i).is_some() {
            again.push((i, item.clone()));
        }
    }
    again
}
