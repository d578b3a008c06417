//! The reference of the configuration, as Markdown: made from the table of keys.

use std::fmt::Write;

use super::keys::{Form, KEYS, Key, Preset};

/// A heading and a table for each of the sections.
pub fn reference() -> String {
    let mut text = String::new();
    for section in KEYS.iter().filter(|key| !key.path.contains('.')) {
        let name = section.path;
        // Writing to a `String` cannot fail.
        let _ = write!(
            text,
            "## {name}\n\n{}\n\n| Key | Holds | Default | Meaning | A change needs |\n|---|---|---|---|---|\n",
            section.meaning
        );
        let below = KEYS.iter().filter(|key| key.path.starts_with(&format!("{name}.")));
        below.for_each(|key| text.push_str(&row(key)));
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn row(key: &Key) -> String {
    let default = match key.default {
        Preset::Is(value) => format!("`{value}`"),
        Preset::Says(words) => words.into(),
        Preset::Required => "required".into(),
        Preset::OfKeys => String::new(),
    };
    let needs = match key.form {
        Form::Section => "",
        _ if key.is_reloaded() => "reload",
        _ => "restart",
    };
    format!("| `{}` | {} | {default} | {} | {needs} |\n", key.path, holds(key), key.meaning)
}

fn holds(key: &Key) -> String {
    let words = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    match &key.form {
        Form::Section => "a section".into(),
        Form::Sections => "a list of sections".into(),
        Form::NamedSections(name) => format!("a section for each: {name}"),
        Form::TextsOrSections(text) => format!("a list of: {text}, or a section"),
        Form::Bool => "`true`, `false`".into(),
        Form::BoolOrSection => "`true`, or a section".into(),
        Form::Number { from, to } => format!("{from} to {to}{}", unit(key.path)),
        Form::Ratio => "0 to 1".into(),
        Form::Text(text) => (*text).into(),
        Form::Word(all) | Form::Version(all) => words(all),
        Form::Texts(text) | Form::NamesOrNumbers(text) => format!("a list of: {text}"),
        Form::Words(all) => format!("a list of: {}", words(all)),
        Form::Anything => "anything".into(),
    }
}

fn unit(path: &str) -> &'static str {
    match path {
        _ if path.ends_with("_ms") => " ms",
        _ if path.ends_with("_bytes") => " bytes",
        _ if path.ends_with("_bytes_per_second") => " bytes/s",
        _ if path.ends_with("_per_second_per_peer") => " a second",
        _ => "",
    }
}
