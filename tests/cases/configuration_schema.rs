//! The JSON Schema and the reference of the configuration: they are what the code makes, fit the examples, and agree with
//! the programs. `UPDATE_DOCS=1` writes them anew.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use mesh_shared::config::Config;
use mesh_shared::config::keys::{Form, KEYS, Key};
use mesh_tests::process::{command, run, succeed, text};
use serde_json::{Value, json};

use crate::demo::{EXAMPLE, every_key};
use crate::documents::{REPOSITORY, pages};

const LEAST: &str = "mesh: {enabled: true, node_name: ct110, tls: true}\n";

/// Compares a file of the repository with what it has to be, or makes it so.
fn is_up_to_date(path: &str, wanted: &str) {
    let file = format!("{REPOSITORY}/{path}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, wanted).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{path} is not what the code makes (line {:?}); write it anew with \
         UPDATE_DOCS=1 cargo test --no-default-features -p mesh-tests --test cases -- configuration_schema",
        differs.map(|line| line + 1)
    );
}

#[test]
fn the_schema_and_the_reference_are_what_the_programs_print() {
    let print = |what| succeed(command("meshctl").args(["config", what]));
    is_up_to_date("deploy/mesh.schema.json", &print("schema"));
    let page = fs::read_to_string(format!("{REPOSITORY}/deploy/docs/configuration.md")).unwrap();
    let (start, end) = ("<!-- meshctl config reference -->\n", "<!-- end -->");
    let (before, rest) = page.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let wanted = format!("{before}{start}{}{end}{after}", print("reference"));
    is_up_to_date("deploy/docs/configuration.md", &wanted);
}

/// Whether each instance fits its schema, as the `jsonschema` of Python says.
fn fit(pairs: &[(&Value, Value)]) -> Vec<bool> {
    const CHECK: &str = "import json, sys, warnings\n\
        from jsonschema import Draft7Validator\n\
        pairs = json.load(sys.stdin)\n\
        for schema, _ in pairs[:1]: Draft7Validator.check_schema(schema)\n\
        print(json.dumps([Draft7Validator(schema).is_valid(instance) for schema, instance in pairs]))";
    // The first in PATH may not be the one that has Debian's packages.
    let has_it = |python: &&&str| {
        let asked = Command::new(python).args(["-c", "import jsonschema"]).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    let python = ["python3", "/usr/bin/python3"];
    let python = python.iter().find(has_it).expect("python3 has no jsonschema: deploy/prerequisites.sh test");
    let mut check = Command::new(python);
    let mut check = check.args(["-c", CHECK]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(json!(pairs).to_string().as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn json_of(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).unwrap_or_else(|error| panic!("{error}:\n{yaml}"))
}

#[test]
fn every_example_fits_the_schema_and_loads() {
    let schema = mesh_shared::config::schema();
    let read = |path: &str| fs::read_to_string(format!("{REPOSITORY}/{path}")).unwrap();
    let example = fs::read_to_string(EXAMPLE).unwrap();
    let mut examples = vec![
        ("deploy/mesh.yaml".to_owned(), example.clone()),
        ("deploy/mesh.yaml with every key".to_owned(), every_key(&example)),
        ("deploy/container/mesh.yaml".to_owned(), read("deploy/container/mesh.yaml")),
    ];
    for document in serde_yaml::Deserializer::from_str(&read("deploy/kubernetes/agent.yaml")) {
        let document = <Value as serde::Deserialize>::deserialize(document).unwrap();
        if let Some(text) = document["data"]["mesh.yaml"].as_str() {
            examples.push(("deploy/kubernetes/agent.yaml".to_owned(), text.to_owned()));
        }
    }
    assert_eq!(examples.len(), 4);
    for page in pages() {
        examples.extend(page.configurations().map(|(line, text)| (format!("{}:{line}", page.path), text)));
    }
    let fits = fit(&examples.iter().map(|(_, text)| (&schema, json_of(text))).collect::<Vec<_>>());
    for ((place, text), fits) in examples.iter().zip(fits) {
        assert!(fits, "{place} does not fit the schema:\n{text}");
        let named = text.replace("  enabled: true ", "  node_name: ct110\n  enabled: true ");
        let named = if text.contains("node_name:") && !text.contains("# node_name") { text } else { &named };
        Config::parse(named).unwrap_or_else(|mistakes| panic!("{place}: {mistakes:?}\n{named}"));
    }
}

#[test]
fn every_key_is_shown_in_the_annotated_example() {
    let all = json_of(&every_key(&fs::read_to_string(EXAMPLE).unwrap()));
    let shown = |key: &&Key| {
        let mut found = vec![&all];
        for step in key.steps() {
            found = found
                .into_iter()
                .flat_map(|value| match step {
                    "[]" => value.as_array().into_iter().flatten().collect::<Vec<_>>(),
                    "*" => value.as_object().into_iter().flat_map(|map| map.values()).collect(),
                    name => value.get(name).into_iter().collect(),
                })
                .collect();
        }
        !found.is_empty()
    };
    // What is only tolerated is not advertised.
    let missing: Vec<_> = KEYS.iter().filter(|key| !shown(key)).map(|key| key.path).collect();
    assert_eq!(missing, ["mesh.delegation_transport"], "deploy/mesh.yaml does not show these");
}

/// A file in which `value` is at this place, and little else; as JSON, which is YAML.
fn with_value(steps: &[&str], value: Value) -> Value {
    let mut nested = value;
    for step in steps.iter().rev() {
        nested = match *step {
            "[]" => json!([nested]),
            "*" => json!({"grok": nested}),
            name => json!({name: nested}),
        };
    }
    for (name, value) in [("enabled", json!(true)), ("node_name", json!("ct110")), ("tls", json!(true))] {
        if nested["mesh"].get(name).is_none() {
            nested["mesh"][name] = value;
        }
    }
    nested
}

#[test]
fn a_misspelt_key_at_each_level_is_refused_by_the_schema_and_by_the_program() {
    let schema = mesh_shared::config::schema();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.yaml");
    let mut levels: Vec<Vec<&str>> = Vec::new();
    for key in KEYS {
        let mut steps: Vec<&str> = key.steps().collect();
        steps.pop();
        if !steps.is_empty() && !levels.contains(&steps) && steps.last() != Some(&"agents") {
            levels.push(steps);
        }
    }
    let files: Vec<Value> =
        levels.iter().map(|steps| with_value(&[steps.as_slice(), &["zzz"]].concat(), json!(1))).collect();
    let fits = fit(&files.iter().map(|file| (&schema, file.clone())).collect::<Vec<_>>());
    for ((steps, file), fits) in levels.iter().zip(&files).zip(fits) {
        assert!(!fits, "the schema accepts zzz in {steps:?}: {file}");
        fs::write(&path, file.to_string()).unwrap();
        let output = run(command("mesh-proxy").args(["check", "--config"]).arg(&path));
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{steps:?}: {told}");
        assert!(told.contains(".zzz: unknown key; "), "{steps:?}: {told}");
    }
    assert!(levels.len() > 25, "{levels:?}");
}

/// Where the schema describes a key.
fn described<'s>(schema: &'s Value, key: &Key) -> &'s Value {
    key.steps().fold(schema, |at, step| {
        let inside = |at: &'s Value| match step {
            "[]" => at.get("items"),
            "*" => at.get("additionalProperties").filter(|each| each.is_object()),
            name => at.get("properties").and_then(|keys| keys.get(name)),
        };
        let alternatives = at.get("anyOf").and_then(Value::as_array).into_iter().flatten();
        std::iter::once(at)
            .chain(alternatives)
            .find_map(inside)
            .unwrap_or_else(|| panic!("{} is not in the schema: {step}", key.path))
    })
}

/// What the schema refuses, the reader refuses, and of kinds of values they say the same. Of texts, the reader knows more.
#[test]
fn the_schema_and_the_reader_agree_on_each_key() {
    let schema = mesh_shared::config::schema();
    let values = |key: &Key| {
        let mut values = vec![json!(true), json!(5), json!("zzz"), json!([]), json!({})];
        if matches!(
            key.form,
            Form::Texts(_) | Form::Words(_) | Form::NamesOrNumbers(_) | Form::TextsOrSections(_)
        ) {
            values.extend([json!(["zzz"]), json!([5]), json!([{}])]);
        }
        if let Form::Number { from, to } = key.form {
            values.extend([json!(from), json!(to), json!(to + 1), json!(1.5), json!(-1)]);
            values.extend(from.checked_sub(1).map(|below| json!(below)));
        }
        if let Form::Word(words) | Form::Words(words) | Form::Version(words) = key.form {
            values.extend(words.iter().map(|word| json!(word)));
        }
        values
    };
    let tried: Vec<(&Key, Value)> =
        KEYS.iter().flat_map(|key| values(key).into_iter().map(move |value| (key, value))).collect();
    let fits =
        fit(&tried.iter().map(|(key, value)| (described(&schema, key), value.clone())).collect::<Vec<_>>());
    for ((key, value), fits) in tried.iter().zip(fits) {
        let steps: Vec<_> = key.steps().collect();
        if steps == ["mesh"] {
            continue;
        }
        let file = with_value(&steps, value.clone());
        let place = key.path.replace("[]", "[0]").replace("*", "grok");
        let below = |mistake: &str| {
            mistake == place || mistake.strip_prefix(&place).is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        let mistakes = Config::parse(&file.to_string()).err().unwrap_or_default();
        let here: Vec<_> = mistakes.iter().filter(|mistake| below(&mistake.key)).collect();
        let of_form = |message: &str| {
            [
                "expected a text",
                "expected a list",
                "expected keys",
                "expected a whole",
                "expected true",
                "unknown",
            ]
            .iter()
            .any(|start| message.starts_with(start))
        };
        if !fits {
            assert!(!here.is_empty(), "only the schema refuses {value} at {}", key.path);
        } else {
            let wrong: Vec<_> = here.iter().filter(|mistake| of_form(&mistake.message)).collect();
            assert!(wrong.is_empty(), "the schema accepts {value} at {}: {wrong:?}", key.path);
        }
        let decided = matches!(key.form, Form::Bool | Form::Number { .. } | Form::Word(_) | Form::Version(_));
        // That the mesh is switched off, or that something else is missing, is another matter.
        let form_only = |mistake: &&&mesh_shared::config::Mistake| mistake.message.starts_with("expected");
        if decided && fits {
            assert_eq!(here.iter().filter(form_only).count(), 0, "{value} at {}: {here:?}", key.path);
        }
    }
    assert!(Config::parse(LEAST).is_ok());
}
