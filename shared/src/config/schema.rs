//! The JSON Schema of the configuration, for editors and other checkers: made from the table of keys.
//!
//! It refuses nothing that the programs accept, apart from keys with nothing behind them. The programs refuse more: they
//! know what an address or a name looks like, and which keys need each other.

use serde_json::{Map, Value, json};

use super::keys::{Form, KEYS, Key, Preset};

/// The schema (draft 7, which editors know best).
pub fn schema() -> Value {
    let mut root = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of mesh-proxy, registryd and meshctl",
        "description": "Other top-level sections belong to other programs.",
        "type": "object",
        "required": ["mesh"],
        "properties": of_keys_in(&[]),
    });
    // The one section that must not be empty.
    root["properties"]["mesh"]["type"] = json!("object");
    root
}

/// The keys right below these steps.
fn children(steps: &[&'static str]) -> impl Iterator<Item = (&'static str, &'static Key)> {
    KEYS.iter().filter_map(move |key| {
        let own: Vec<_> = key.steps().collect();
        let (name, above) = own.split_last()?;
        (above == steps).then_some((*name, key))
    })
}

fn of_keys_in(steps: &[&'static str]) -> Map<String, Value> {
    children(steps).map(|(name, key)| (name.to_owned(), of_key(key))).collect()
}

/// A section with the keys below these steps, and no others.
fn section(steps: &[&'static str]) -> Map<String, Value> {
    let required: Vec<_> =
        children(steps).filter(|(_, key)| key.default == Preset::Required).map(|(name, _)| name).collect();
    let mut section = Map::new();
    section.insert("properties".into(), of_keys_in(steps).into());
    section.insert("additionalProperties".into(), false.into());
    if !required.is_empty() {
        section.insert("required".into(), required.into());
    }
    section
}

fn of_key(key: &Key) -> Value {
    let steps: Vec<_> = key.steps().collect();
    let below = |step: &'static str| [steps.as_slice(), &[step]].concat();
    let typed = |kind: Value, mut section: Map<String, Value>| {
        section.insert("type".into(), kind);
        Value::Object(section)
    };
    let one_or_more = |one: Value| json!({"anyOf": [one, {"type": "array", "items": one}]});
    let mut schema = match &key.form {
        Form::Section => typed(json!(["object", "null"]), section(&steps)),
        Form::BoolOrSection => {
            json!({"anyOf": [{"type": "boolean"}, typed(json!("object"), section(&steps))]})
        }
        Form::Sections => {
            json!({"type": ["array", "null"], "items": typed(json!("object"), section(&below("[]")))})
        }
        Form::NamedSections(_) => json!({
            "type": ["object", "null"],
            "additionalProperties": typed(json!("object"), section(&below("*"))),
        }),
        Form::TextsOrSections(_) => json!({"anyOf": [
            {"type": "string"},
            {"type": ["array", "null"], "items": {"anyOf": [{"type": "string"}, typed(json!("object"), section(&below("[]")))]}},
        ]}),
        Form::Bool => json!({"type": "boolean"}),
        Form::Number { from, to } => json!({"type": "integer", "minimum": from, "maximum": to}),
        Form::Ratio => json!({"type": "number", "minimum": 0, "maximum": 1}),
        Form::Text(_) => json!({"type": "string"}),
        Form::Word(words) => json!({"enum": words}),
        Form::Version(versions) => {
            let numbers = versions.iter().filter_map(|version| version.parse::<f64>().ok());
            let both: Vec<Value> =
                versions.iter().map(|text| json!(text)).chain(numbers.map(|number| json!(number))).collect();
            json!({"enum": both})
        }
        Form::Texts(_) => one_or_more(json!({"type": "string"})),
        Form::Words(words) => one_or_more(json!({"enum": words})),
        Form::NamesOrNumbers(_) => one_or_more(json!({"type": ["string", "integer"]})),
        // Whatever it is, it is not looked into.
        Form::Anything if key.path != "registryd.metadata" => json!({}),
        Form::Anything => json!({"type": ["object", "null"]}),
    };
    schema["description"] = key.meaning.into();
    if let Preset::Is(text) = key.default
        && let Ok(value) = serde_yaml::from_str::<Value>(text)
    {
        schema["default"] = value;
    }
    schema
}
