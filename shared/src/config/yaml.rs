//! Reading a YAML document key by key, with every mistake kept until the end. The only user of
//! `serde_yaml`.

mod place;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_yaml::{Mapping, Value};

use super::keys::{self, Form, Key};
use place::{Path, Step, dotted, path_of};

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

/// A parsed file with what was found in it so far.
pub(super) struct Document<'t> {
    text: &'t str,
    root: Mapping,
    mistakes: RefCell<Vec<Mistake>>,
    remarks: RefCell<Vec<Mistake>>,
}

/// What stands for other keys in YAML 1.1, and is a key like any other in YAML 1.2.
const MERGE_KEY: &str = "<<";

impl<'t> Document<'t> {
    /// # Errors
    /// Text that is not a YAML mapping at all.
    pub(super) fn parse(text: &'t str) -> Result<Self, Mistake> {
        let whole = |line, message| Mistake { key: String::new(), line, message };
        // YAML allows none of these, and serde_yaml does not tell their line.
        let forbidden = |c: char| {
            c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')
                || matches!(c, '\u{fffe}' | '\u{ffff}')
        };
        if let Some((at, found)) = text.char_indices().find(|(_, c)| forbidden(*c)) {
            let line = text[..at].split('\n').count();
            return Err(whole(
                Some(line),
                format!("not valid YAML: the character {found:?} cannot stand in it"),
            ));
        }
        let root = serde_yaml::from_str(text).map_err(|error| match place::repeated_key(text) {
            Some((path, line)) => {
                let message = "duplicate key; remove one of the two".into();
                Mistake { key: dotted(&path), line, message }
            }
            None => not_yaml(text, &error),
        })?;
        match root {
            Value::Mapping(root) => {
                Ok(Self { text, root, mistakes: RefCell::default(), remarks: RefCell::default() })
            }
            Value::Null => Err(whole(None, "the file is empty; expected at least a mesh: section".into())),
            other => Err(whole(
                place::line_at(text, &[]),
                format!("expected sections such as mesh:, found {}", shown(&other)),
            )),
        }
    }

    /// The named top-level section; an absent one reads as empty.
    pub(super) fn section(&self, name: &str) -> Section<'_> {
        let value = self.root.get(name).unwrap_or(&Value::Null);
        Section::new(self, vec![Step::Key(name.into())], value)
    }

    /// The named top-level section, which must be there and not be empty.
    pub(super) fn required_section(&self, name: &str) -> Option<Section<'_>> {
        if self.root.get(name).is_some_and(|value| !value.is_null()) {
            return Some(self.section(name));
        }
        let known = [name];
        match self.unknown_sections(&known).next() {
            _ if self.root.contains_key(name) => self.mistake(name, "is empty"),
            Some((key, _)) => {
                let message = format!("there is no {name}: section; is this one meant?");
                self.report(&vec![Step::Key(key.into())], message);
            }
            None => self.report(&Path::new(), format!("there is no {name}: section")),
        }
        None
    }

    /// Remarks on what is ignored although one of the `known` sections seems to be meant. All other sections
    /// belong to other programs.
    pub(super) fn remark_on_unknown_sections(&self, known: &[&str]) {
        for (key, meant) in self.unknown_sections(known) {
            self.remark(key, format!("is ignored; did you mean {meant}?"));
        }
        if self.root.contains_key(MERGE_KEY) {
            self.remark(MERGE_KEY, "is ignored: merge keys are not supported");
        }
    }

    fn unknown_sections<'k>(&'k self, known: &'k [&str]) -> impl Iterator<Item = (&'k str, &'k str)> {
        let unknown = self.root.keys().filter_map(Value::as_str).filter(|key| !known.contains(key));
        unknown.filter_map(|key| {
            let written = key.to_ascii_lowercase();
            let distance = |known| strsim::damerau_levenshtein(&written, known);
            let (distance, meant) = known.iter().map(|known| (distance(known), *known)).min()?;
            (distance <= 2).then_some((key, meant))
        })
    }

    /// Whether `key` (as in `mesh.peers[0].name`) is there.
    pub(super) fn has(&self, key: &str) -> bool {
        place::line_at(self.text, &path_of(key)).is_some()
    }

    /// Adds a mistake that concerns several keys together, told at one of them.
    pub(super) fn mistake(&self, key: &str, message: impl Into<String>) {
        self.report(&path_of(key), message.into());
    }

    /// Adds a remark that is not a mistake.
    pub(super) fn remark(&self, key: &str, message: impl Into<String>) {
        let path = path_of(key);
        let remark = Mistake { key: dotted(&path), line: self.line_of(&path), message: message.into() };
        self.remarks.borrow_mut().push(remark);
    }

    /// All remarks in the file's order.
    ///
    /// # Errors
    /// Everything that was wrong, in the file's order.
    pub(super) fn finish(self) -> Result<Vec<Mistake>, Vec<Mistake>> {
        let in_order = |found: RefCell<Vec<Mistake>>| {
            let mut found = found.into_inner();
            found.sort_by_key(|each| each.line);
            found
        };
        let mistakes = in_order(self.mistakes);
        if mistakes.is_empty() { Ok(in_order(self.remarks)) } else { Err(mistakes) }
    }

    fn report(&self, path: &Path, message: String) {
        let mistake = Mistake { key: dotted(path), line: self.line_of(path), message };
        self.mistakes.borrow_mut().push(mistake);
    }

    /// The line of the value at `path`, or of the nearest section around it that exists.
    fn line_of(&self, path: &Path) -> Option<usize> {
        (1..=path.len()).rev().find_map(|length| place::line_at(self.text, &path[..length]))
    }
}

/// What keeps the text from being read as YAML, in words.
fn not_yaml(text: &str, error: &serde_yaml::Error) -> Mistake {
    let line = error.location().map(|at| at.line());
    let indented_by_tab = |line: usize| {
        let text = text.lines().nth(line - 1).unwrap_or_default();
        text[..text.len() - text.trim_start().len()].contains('\t')
    };
    let message = match line {
        Some(line) if indented_by_tab(line) => "tabs are not allowed, use spaces".into(),
        _ => format!("not valid YAML: {error}"),
    };
    Mistake { key: String::new(), line, message }
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
        debug_assert!(in_table(&self.at(key)).is_some(), "{key} is not in the table of keys");
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
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

    /// Whether `key` is there with nothing behind it.
    pub(super) fn is_empty(&self, key: &str) -> bool {
        self.map.and_then(|map| map.get(key)).is_some_and(Value::is_null)
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

    /// `true`, `false` or a section.
    pub(super) fn bool_or_section(&self, key: &'static str) -> Option<BoolOrSection<'d>> {
        match self.value(key)? {
            Value::Mapping(_) => Some(BoolOrSection::Section(self.section(key))),
            Value::Bool(value) => Some(BoolOrSection::Bool(*value)),
            other => {
                self.mistake(key, format!("expected true, false or a section, found {}", shown(other)));
                None
            }
        }
    }

    /// A whole number within the range that the table of keys gives.
    pub(super) fn number(&self, key: &'static str) -> Option<u64> {
        let value = self.value(key)?;
        let Some(&Form::Number { from, to }) = in_table(&self.at(key)).map(|key| &key.form) else {
            self.mistake(key, "cannot be read: the table of keys does not know it as a number");
            return None;
        };
        let found = value.as_u64().filter(|number| (from..=to).contains(number));
        if found.is_none() {
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

    /// As [`Section::parsed`], of a text that looks like a number where it stands without quotes, such as `1.3`.
    pub(super) fn parsed_number<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<T> {
        match self.value(key)? {
            Value::Number(number) => {
                number.to_string().parse().map_err(|error: T::Err| self.mistake(key, error.to_string())).ok()
            }
            _ => self.parsed(key),
        }
    }

    /// A list of texts that have the form of a `T`; one text alone counts as a list of one.
    pub(super) fn list<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<Vec<T>> {
        self.list_by(key, text)
    }

    /// As [`list`](Self::list), of things that have names or numbers.
    pub(super) fn list_of_scalars<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<Vec<T>> {
        self.list_by(key, |value| match value {
            Value::Number(number) => Ok(number.to_string()),
            other => text(other),
        })
    }

    fn list_by<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &'static str,
        text: impl Fn(&Value) -> Result<String, String>,
    ) -> Option<Vec<T>> {
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

    /// A list whose members are sections, with their positions; `expected` says what one looks like.
    pub(super) fn sections(&self, key: &'static str, expected: &str) -> Vec<(usize, Section<'d>)> {
        let members = self.members(key, expected, false).into_iter();
        members
            .filter_map(|(i, member)| match member {
                Item::Section(section) => Some((i, section)),
                Item::Text(_) => None,
            })
            .collect()
    }

    /// As [`Section::sections`], and each may be a text instead; one text alone counts as a list of one.
    pub(super) fn texts_or_sections(&self, key: &'static str, expected: &str) -> Vec<(usize, Item<'d>)> {
        self.members(key, expected, true)
    }

    fn members(&self, key: &'static str, expected: &str, or_text: bool) -> Vec<(usize, Item<'d>)> {
        let items = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Sequence(items)) => items.as_slice(),
            Some(text @ Value::String(_)) if or_text => std::slice::from_ref(text),
            Some(other) => {
                self.mistake(key, format!("expected a list, found {}", shown(other)));
                return Vec::new();
            }
        };
        let member = |(i, value): (usize, &'d Value)| match value {
            Value::String(text) if or_text => Some((i, Item::Text(text.clone()))),
            Value::Mapping(_) => {
                Some((i, Item::Section(Section::new(self.document, self.item(key, i), value))))
            }
            other => {
                self.mistake_at(key, i, format!("expected {expected}, found {}", shown(other)));
                None
            }
        };
        items.iter().enumerate().filter_map(member).collect()
    }

    /// How many members the list at `key` has, good or bad.
    pub(super) fn length(&self, key: &'static str) -> usize {
        self.value(key).and_then(Value::as_sequence).map_or(0, Vec::len)
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

    /// A section whose keys have the form of a `T`, and whose values are sections; `expected` says what one of them looks
    /// like.
    pub(super) fn named_sections<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &'static str,
        expected: &str,
    ) -> Vec<(T, Section<'d>)> {
        let outer = self.section(key);
        let mut named = Vec::new();
        for (name, value) in outer.map.into_iter().flatten() {
            let shown_name = name.as_str().map_or_else(|| shown(name), str::to_owned);
            let path = outer.at(&shown_name);
            let report = |message| self.document.report(&path, message);
            match (text(name).map(|name| name.parse::<T>()), value) {
                _ if shown_name == MERGE_KEY => {
                    report("merge keys are not supported; write the keys out".into());
                }
                (Err(found), _) => report(format!("expected a text, found {found}")),
                (Ok(Err(error)), _) => report(error.to_string()),
                (Ok(Ok(name)), Value::Mapping(_)) => {
                    named.push((name, Section::new(self.document, path, value)));
                }
                (_, other) => report(format!("expected {expected}, found {}", shown(other))),
            }
        }
        named
    }

    /// Adds a mistake about this section as a whole.
    pub(super) fn mistake_here(&self, message: impl Into<String>) {
        self.document.report(&self.path, message.into());
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
            let mut path = self.path.clone();
            path.push(Step::Key(key.clone()));
            if key == MERGE_KEY {
                self.document.report(&path, "merge keys are not supported; write the keys out".into());
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
            self.document.report(&path, format!("unknown key; {hint}"));
        }
    }
}

/// What may be switched, or said in detail.
pub(super) enum BoolOrSection<'d> {
    Bool(bool),
    Section(Section<'d>),
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

/// The key at this place in the table.
fn in_table(path: &[Step]) -> Option<&'static Key> {
    keys::find(path.iter().map(|step| match step {
        Step::Key(key) => key.as_str(),
        Step::Index(_) => "[]",
    }))
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

/// Names that must not stand twice in a list, with their positions in it.
pub(super) fn repeated<T: Ord + Clone>(items: Vec<(usize, T)>) -> Vec<(usize, T)> {
    let mut seen = BTreeSet::new();
    items.into_iter().filter(|(_, item)| !seen.insert(item.clone())).collect()
}
