//! What the documents say is true: configurations load, command lines parse, links lead somewhere, and every key, metric,
//! error code, unit and file that they name exists. README.md and deploy/docs/*.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use mesh_shared::config::Config;
use mesh_shared::config::keys::KEYS;
use mesh_tests::mesh::Mesh;
use mesh_tests::process::{command, run, text};
use serde_json::Value;

/// The folder of the repository.
pub(crate) const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Sections by which a configuration is told from what other programs read.
const SECTIONS: [&str; 3] = ["mesh", "proxy", "registryd"];
/// The programs whose command lines are tried.
const PROGRAMS: [&str; 3] = ["meshctl", "mesh-proxy", "registryd"];

/// A page, in pieces.
pub(crate) struct Page {
    /// Its path in the repository.
    pub(crate) path: String,
    blocks: Vec<Block>,
    /// The lines outside of blocks, with their numbers.
    prose: Vec<(usize, String)>,
}

/// A fenced block.
struct Block {
    line: usize,
    /// The words behind the fence: a language, and what a test needs to know.
    info: Vec<String>,
    text: String,
}

/// All pages.
pub(crate) fn pages() -> Vec<Page> {
    let mut paths = vec!["README.md".to_owned()];
    for entry in fs::read_dir(format!("{REPOSITORY}/deploy/docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        paths.extend(name.ends_with(".md").then(|| format!("deploy/docs/{name}")));
    }
    paths.sort();
    paths.into_iter().map(Page::read).collect()
}

impl Page {
    fn read(path: String) -> Self {
        let text = fs::read_to_string(format!("{REPOSITORY}/{path}")).unwrap();
        let (mut blocks, mut prose) = (Vec::new(), Vec::new());
        let mut open: Option<(usize, Block)> = None;
        for (i, line) in text.lines().enumerate() {
            let content = line.trim_start();
            let indent = line.len() - content.len();
            open = match (content.strip_prefix("```"), open) {
                (Some(_), Some((_, block))) => {
                    blocks.push(block);
                    None
                }
                (Some(info), None) => {
                    let info = info.split_whitespace().map(String::from).collect();
                    Some((indent, Block { line: i + 1, info, text: String::new() }))
                }
                (None, Some((indent, mut block))) => {
                    block.text.push_str(line.get(indent..).unwrap_or_default());
                    block.text.push('\n');
                    Some((indent, block))
                }
                (None, None) => {
                    prose.push((i + 1, line.to_owned()));
                    None
                }
            };
        }
        assert!(open.is_none(), "{path}: a block does not end");
        Self { path, blocks, prose }
    }

    fn blocks<'p>(&'p self, languages: &'p [&str]) -> impl Iterator<Item = &'p Block> {
        self.blocks
            .iter()
            .filter(|block| block.info.first().is_some_and(|info| languages.contains(&info.as_str())))
    }

    /// The configurations on it as whole files, with the lines where they begin.
    pub(crate) fn configurations(&self) -> impl Iterator<Item = (usize, String)> {
        self.blocks(&["yaml"]).filter_map(|block| {
            let value: Value = serde_yaml::from_str(&block.text)
                .unwrap_or_else(|error| panic!("{}:{}: {error}", self.path, block.line));
            let is_ours =
                value.as_object().is_some_and(|map| map.keys().any(|key| SECTIONS.contains(&key.as_str())));
            is_ours.then(|| (block.line, whole(value)))
        })
    }

    /// What stands in backticks outside of blocks, with its line. Spans may go over the end of a line.
    fn spans(&self) -> Vec<(usize, String)> {
        let mut spans = Vec::new();
        let mut paragraph: Vec<(usize, &str)> = Vec::new();
        let blank = (0, String::new());
        for (line, text) in self.prose.iter().chain([&blank]) {
            if !text.trim().is_empty() && !text.starts_with('|') {
                paragraph.push((*line, text));
                continue;
            }
            spans.extend(spans_of(&paragraph));
            paragraph.clear();
            spans.extend(spans_of(&[(*line, text)]));
        }
        spans
    }
}

fn spans_of(lines: &[(usize, &str)]) -> Vec<(usize, String)> {
    let joined = lines.iter().map(|(_, text)| text.trim()).collect::<Vec<_>>().join(" ");
    let line = lines.first().map_or(0, |(line, _)| *line);
    joined.split('`').skip(1).step_by(2).map(|span| (line, span.to_owned())).collect()
}

/// A configuration of which only a part is shown, with the rest that it needs.
fn whole(mut value: Value) -> String {
    for (name, needed) in [("enabled", true.into()), ("node_name", "ct110".into()), ("tls", true.into())] {
        if value["mesh"].get(name).is_none() {
            value["mesh"][name] = needed;
        }
    }
    value.to_string()
}

#[test]
fn configurations_load() {
    let mut loaded = 0;
    for page in pages() {
        for (line, text) in page.configurations() {
            let config = Config::parse(&text)
                .unwrap_or_else(|mistakes| panic!("{}:{line}: {mistakes:?}\n{text}", page.path));
            assert!(config.warnings.is_empty(), "{}:{line}: {:?}", page.path, config.warnings);
            loaded += 1;
        }
    }
    assert!(loaded >= 8, "{loaded}");
}

/// The command lines of a script, each as words: `a && b | c` are three.
fn commands_of(script: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word): (Vec<Vec<String>>, Vec<String>, Option<String>) =
        Default::default();
    let mut quote = None;
    let mut depth = 0_usize;
    let script = script.replace("\\\n", " ");
    let mut characters = script.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (_, Some(open)) if character == open => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(character),
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            // A placeholder, as in <node>.
            ('<', None) if characters.peek().is_some_and(|next| next.is_ascii_lowercase()) => {
                depth += 1;
                word.get_or_insert_default().push(character);
            }
            ('>', None) if depth > 0 => {
                depth -= 1;
                word.get_or_insert_default().push(character);
            }
            ('#', None) if word.is_none() => {
                while characters.peek().is_some_and(|next| *next != '\n') {
                    characters.next();
                }
            }
            ('\n' | ';' | '|' | '&' | '>' | '<' | '(' | ')', None) => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (' ' | '\t', None) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

/// The program and its arguments, where a command line runs one of ours: by itself, after sudo, ssh or variables. Elsewhere
/// its name is a word like others, as in `systemctl start registryd`.
fn ours(words: &[String]) -> Option<(&'static str, &[String])> {
    let mut words = words;
    loop {
        let (first, rest) = words.split_first()?;
        let name = Path::new(first).file_name()?.to_str()?;
        if let Some(program) = PROGRAMS.into_iter().find(|program| *program == name) {
            return Some((program, rest));
        }
        words = match (first.as_str(), rest) {
            ("sudo", [option, _user, rest @ ..]) if option == "-u" => rest,
            ("ssh", [option, _host, rest @ ..]) if option == "-t" => rest,
            ("ssh", [_host, rest @ ..]) => rest,
            ("sudo" | "exec", rest) => rest,
            (variable, rest) if variable.contains('=') => rest,
            _ => return None,
        };
    }
}

/// A word of a command line as it may be typed: placeholders stand for something.
fn typed(word: &str) -> Option<String> {
    let plain = word.trim_start_matches('[').trim_end_matches([']', '…', ',']);
    if plain.is_empty() {
        return None;
    }
    let mut typed = String::new();
    let mut rest = plain;
    while let Some((before, after)) = rest.split_once('<') {
        let (name, behind) = after.split_once('>')?;
        typed.push_str(before);
        typed.push_str(match name {
            "address" => "192.168.10.110",
            "agent" | "agents" => "opus",
            "days" => "30",
            _ => "ct112",
        });
        rest = behind;
    }
    Some(typed + rest)
}

/// Tries each command line with `--help` behind it: what stands before is read first, and unknown flags, commands and
/// values are refused.
fn parses(program: &str, arguments: &[String]) -> Result<(), String> {
    let mut words: Vec<String> = arguments.iter().filter_map(|word| typed(word)).collect();
    words.push("--help".into());
    let output = run(command(program).args(&words).stdin(Stdio::null()));
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {}: {}", words.join(" "), text(&output.stderr))),
    }
}

#[test]
fn command_lines_are_those_of_the_programs() {
    let mut lines: BTreeMap<(String, Vec<String>), String> = BTreeMap::new();
    let mut note = |place: String, script: &str| {
        for words in commands_of(script) {
            if let Some((program, arguments)) = ours(&words) {
                lines.entry((program.to_owned(), arguments.to_vec())).or_insert(place.clone());
            }
        }
    };
    for page in pages() {
        for block in page.blocks(&["sh", "console", "bash"]) {
            note(format!("{}:{}", page.path, block.line), &block.text);
        }
        for (line, span) in page.spans() {
            // A file in it, as in `mesh-proxy --config FILE`, is any word; a program's name alone is not a command.
            if span.contains(' ') && !span.starts_with("meshctl_") {
                note(format!("{}:{line}", page.path), &span.replace(['[', ']'], ""));
            }
        }
    }
    let wrong: Vec<String> = lines
        .iter()
        .filter_map(|((program, arguments), place)| {
            parses(program, arguments).err().map(|error| format!("{place}: {error}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines.len() > 40, "{}", lines.len());
}

/// The anchors of a page, as GitHub makes them from headings.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut anchors = BTreeSet::new();
    for heading in text.lines().filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|each| each.is_alphanumeric() || [' ', '-', '_'].contains(each));
        anchors.insert(kept.map(|each| if each == ' ' { '-' } else { each }).collect());
    }
    anchors
}

#[test]
fn links_lead_to_pages_and_headings_that_exist() {
    let mut followed = 0;
    for page in pages() {
        let file = Path::new(REPOSITORY).join(&page.path);
        let prose = page.prose.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let quoted = ["src=\"", "srcset=\"", "href=\""]
            .iter()
            .flat_map(|start| prose.split(start).skip(1).filter_map(|rest| rest.split_once('"')));
        for (target, _) in targets.chain(quoted) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            assert!(path.exists(), "{}: {target} does not exist", page.path);
            assert!(
                anchor.is_empty() || anchors(&path).contains(anchor),
                "{}: {target} has no such heading",
                page.path
            );
            followed += 1;
        }
    }
    assert!(followed > 40, "{followed}");
}

/// What names the attributes of spans, some of which look like keys.
const ATTRIBUTES_IN: [&str; 2] =
    [include_str!("../../proxy/src/span.rs"), include_str!("../../shared/telemetry/src/export.rs")];

#[test]
fn keys_that_are_named_exist() {
    let known: BTreeSet<String> =
        KEYS.iter().map(|key| key.path.replace("[]", "").replace(".*", "")).collect();
    let tops: BTreeSet<&str> = KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
    let files = [
        ".json", ".yaml", ".sock", ".service", ".socket", ".timer", ".md", ".key", ".crt", ".pem", ".csr",
        ".lock",
    ];
    let mut named = 0;
    for page in pages() {
        for (line, span) in page.spans() {
            let key =
                span.split([':', ' ', '=']).next().unwrap_or_default().replace("[]", "").replace("[0]", "");
            let Some((top, rest)) = key.split_once('.') else { continue };
            let looks_like_one = rest
                .chars()
                .all(|each| each.is_ascii_lowercase() || "._*".contains(each) || each.is_ascii_digit());
            if !tops.contains(top) || !looks_like_one || files.iter().any(|file| key.ends_with(file)) {
                continue;
            }
            if page.path.ends_with("telemetry.md")
                && ATTRIBUTES_IN.iter().any(|code| code.contains(&format!("\"{key}\"")))
            {
                continue;
            }
            let key = key.trim_end_matches(".*").replace(".*", "").replace(".grok", "");
            assert!(known.contains(&key), "{}:{line}: {key} is not a key of the configuration", page.path);
            named += 1;
        }
    }
    assert!(named > 200, "{named}");
}

/// Everything below a folder whose name ends so.
fn sources(folder: &str, ending: &str) -> String {
    let mut all = String::new();
    let mut folders = vec![Path::new(REPOSITORY).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().ends_with(ending) => {
                    all += &fs::read_to_string(path).unwrap()
                }
                false => {}
            }
        }
    }
    all
}

#[test]
fn metrics_that_are_named_exist() {
    let code = sources("proxy/src", ".rs") + &sources("registryd/src", ".rs");
    let mut named = 0;
    for page in pages() {
        for (line, span) in page.spans() {
            for word in span.split(|each: char| !each.is_ascii_alphanumeric() && each != '_') {
                let Some(name) = word.strip_prefix("mesh_proxy_").or(word.strip_prefix("mesh_")) else {
                    continue;
                };
                let name = name.strip_prefix("registryd_").unwrap_or(name);
                let stem = ["_total", "_bucket", "_sum", "_count", "_seconds", "_info"]
                    .iter()
                    .fold(name, |name, ending| name.strip_suffix(ending).unwrap_or(name));
                assert!(code.contains(stem), "{}:{line}: {word} is not a metric", page.path);
                named += 1;
            }
        }
    }
    assert!(named > 30, "{named}");
}

/// The first column of the tables of deploy/docs/errors.md.
fn documented_codes() -> BTreeSet<String> {
    let page = fs::read_to_string(format!("{REPOSITORY}/deploy/docs/errors.md")).unwrap();
    let cells = page.lines().filter(|line| line.starts_with("| `")).filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(String::from).collect()
}

/// Those of the sidecar are compared beside it (`proxy/src/error.rs`).
#[test]
fn the_codes_of_registryd_and_of_the_ca_are_documented() {
    let documented = documented_codes();
    let quoted = |code: &str, start: &str| {
        code.split(start)
            .skip(1)
            .filter_map(|rest| rest.split('"').nth(1))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let api = sources("registryd/src/api", ".rs")
        + &fs::read_to_string(format!("{REPOSITORY}/registryd/src/api.rs")).unwrap();
    let mut codes = quoted(&api, "refusal(");
    let admission =
        fs::read_to_string(format!("{REPOSITORY}/registryd/src/membership/admission.rs")).unwrap();
    let (_, of_joins) = admission.split_once("fn code(").unwrap();
    codes.extend(
        of_joins
            .split("    }\n")
            .next()
            .unwrap()
            .split("=> \"")
            .skip(1)
            .filter_map(|rest| rest.split_once('"').map(|(code, _)| code.to_owned())),
    );
    use mesh_shared::enrolment::{CA_UNAVAILABLE, ENROLMENT_REFUSED, RENEWAL_REFUSED, RENEWAL_TOO_SOON};
    codes.extend([CA_UNAVAILABLE, ENROLMENT_REFUSED, RENEWAL_REFUSED, RENEWAL_TOO_SOON].map(String::from));
    codes.retain(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    assert!(codes.len() > 25, "{codes:?}");
    for code in codes {
        assert!(documented.contains(&code), "deploy/docs/errors.md does not say what {code} means");
    }
}

#[test]
fn error_codes_that_are_named_exist() {
    let documented = documented_codes();
    let mut named = 0;
    for page in pages() {
        for (line, text) in &page.prose {
            let pieces: Vec<&str> = text.split('`').collect();
            for (before, code) in pieces.iter().zip(pieces.iter().skip(1)).step_by(2) {
                let status = before.trim_end().rsplit(' ').next().unwrap_or_default();
                if status.len() == 3
                    && status.parse().is_ok_and(|status: u16| (400..600).contains(&status))
                    && code.contains('_')
                {
                    assert!(documented.contains(*code), "{}:{line}: {code} is not in errors.md", page.path);
                    named += 1;
                }
            }
        }
    }
    assert!(named > 3, "{named}");
}

#[test]
fn files_and_units_that_are_named_exist() {
    let units = fs::read_dir(format!("{REPOSITORY}/deploy/systemd")).unwrap();
    let units: BTreeSet<String> =
        units.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut named = 0;
    for page in pages() {
        let blocks = page.blocks(&["sh", "console", "bash"]).flat_map(|block| {
            let words = commands_of(&block.text).into_iter().flatten();
            words.map(move |word| (block.line, word))
        });
        let spans = page.spans().into_iter().flat_map(|(line, span)| {
            span.split_whitespace().map(|word| (line, word.to_owned())).collect::<Vec<_>>()
        });
        for (line, word) in blocks.chain(spans) {
            let word = word.trim_end_matches([',', '/', '.']);
            let place = format!("{}:{line}", page.path);
            if ["deploy/", "tests/", ".ci/"].iter().any(|folder| word.starts_with(folder))
                && !word.contains(['*', '{', '<', '$'])
            {
                assert!(Path::new(REPOSITORY).join(word).exists(), "{place}: {word} does not exist");
                named += 1;
            }
            let is_key = KEYS.iter().any(|key| key.path == word);
            let is_unit = !is_key && [".service", ".timer", ".socket"].iter().any(|end| word.ends_with(end));
            if is_unit && (word.starts_with("mesh") || word.starts_with("registryd")) {
                assert!(units.contains(word), "{place}: {word} is not in deploy/systemd");
                named += 1;
            }
        }
    }
    assert!(named > 20, "{named}");
}

/// The programs of the README and of the recipes that need nothing but an interpreter, as they stand there, through two
/// sidecars. Those with packages are run by tests/sdk.sh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_that_are_shown_reach_an_agent() {
    let mesh = Mesh::new();
    let _far = mesh.start("ct111", "grok").await;
    let near = mesh.start("ct110", "opus").await;
    near.reaches("ct111").await;
    let folder = tempfile::tempdir().unwrap();
    let mut ran = BTreeSet::new();
    let mut not_run = BTreeSet::new();
    for page in
        pages().iter().filter(|page| ["README.md", "deploy/docs/recipes.md"].contains(&page.path.as_str()))
    {
        for block in page
            .blocks(&["sh", "python", "js", "go"])
            .filter(|block| block.info.iter().any(|info| info == "run"))
        {
            let program = block.text.replace("127.0.0.1:3001", &near.outbound().to_string());
            let (interpreter, arguments, name): (_, &[_], _) = match block.info[0].as_str() {
                "sh" => ("bash", &["-e"], "program.sh"),
                "python" => ("python3", &[], "program.py"),
                "js" => ("node", &[], "program.mjs"),
                _ => ("go", &["run"], "program.go"),
            };
            let path = folder.path().join(name);
            fs::write(&path, &program).unwrap();
            let mut run = Command::new(interpreter);
            run.args(arguments).arg(&path).current_dir(folder.path());
            for variable in ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
            {
                run.env_remove(variable);
            }
            let place = format!("{}:{} ({})", page.path, block.line, block.info[0]);
            match run.output() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    eprintln!("##### NOT RUN: {place}, because {interpreter} is not installed here. #####");
                    not_run.insert(block.info[0].clone());
                }
                output => {
                    let output = output.unwrap();
                    let told = text(&output.stdout) + &text(&output.stderr);
                    assert!(output.status.success() && told.contains("grok"), "{place}: {told}\n{program}");
                    ran.insert(block.info[0].clone());
                }
            }
        }
    }
    assert!(["sh", "python", "js"].iter().all(|language| ran.contains(*language)), "{ran:?} {not_run:?}");
}
