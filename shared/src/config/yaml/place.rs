//! Positions in a YAML text.
//!
//! `serde_yaml` tells positions only in its own errors. So a place is found by walking to it once more and failing
//! there on purpose; that happens only for files with mistakes or warnings.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The way to a value: keys, and positions in lists.
pub(super) type Path = Vec<Step>;

#[derive(Clone)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// `a.b[2].c`, for people.
pub(super) fn dotted(path: &[Step]) -> String {
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

/// `a.b[2].c` in steps.
pub(super) fn path_of(key: &str) -> Path {
    let mut path = Path::new();
    for part in key.split('.') {
        let mut pieces = part.split('[');
        path.extend(pieces.next().map(|name| Step::Key(name.into())));
        path.extend(pieces.filter_map(|index| index.trim_end_matches(']').parse().ok().map(Step::Index)));
    }
    path
}

/// The line of the key or list member at `path`, from 1.
pub(super) fn line_at(text: &str, path: &[Step]) -> Option<usize> {
    line_of_failure(Locate { path }, text)
}

/// The first key that is given twice, and the line of its second place.
pub(super) fn repeated_key(text: &str) -> Option<(Path, Option<usize>)> {
    let walk = Walk::default();
    let line = line_of_failure(Distinct(&walk), text);
    walk.repeated.get().then(|| (walk.path.into_inner(), line))
}

fn line_of_failure<'t>(walk: impl DeserializeSeed<'t>, text: &'t str) -> Option<usize> {
    let failed = walk.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    failed.location().map(|at| at.line())
}

/// Walks to `path` and fails there, so that the error carries the place.
struct Locate<'p> {
    path: &'p [Step],
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
            self.no_further()?;
            // What is not read to its end is an error of its own.
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let last = rest.is_empty();
        while let Some(found) = map.next_key_seed(Key { wanted, last })? {
            match found {
                true => map.next_value_seed(Locate { path: rest })?,
                false => map.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.path.split_first() else {
            self.no_further()?;
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        for _ in 0..*wanted {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate { path: rest })?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.no_further()
    }
    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.no_further()
    }
    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.no_further()
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.no_further()
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.no_further()
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.no_further()
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.no_further()
    }
}

impl Locate<'_> {
    /// Fails if this is the place; else the walk has left its way.
    fn no_further<E: serde::de::Error>(&self) -> Result<(), E> {
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

/// Walks everything and fails at a key that its mapping has already.
struct Distinct<'w>(&'w Walk);

#[derive(Default)]
struct Walk {
    /// Where the walk is, and where it stays once it fails.
    path: RefCell<Path>,
    repeated: Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Distinct<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Distinct<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key_seed(NewKey { walk: self.0, seen: &seen })? {
            self.0.path.borrow_mut().push(Step::Key(key.clone()));
            map.next_value_seed(Distinct(self.0))?;
            self.0.path.borrow_mut().pop();
            seen.insert(key);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for i in 0.. {
            self.0.path.borrow_mut().push(Step::Index(i));
            let more = seq.next_element_seed(Distinct(self.0))?;
            self.0.path.borrow_mut().pop();
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A key that was not `seen` before.
struct NewKey<'w> {
    walk: &'w Walk,
    seen: &'w BTreeSet<String>,
}

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        if self.seen.contains(key) {
            self.walk.path.borrow_mut().push(Step::Key(key.into()));
            self.walk.repeated.set(true);
            return Err(E::custom("here"));
        }
        Ok(key.into())
    }
}
