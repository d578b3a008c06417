//! What must hold for bytes from outside: a function for each place that reads them. It panics where the
//! property does not hold.
//!
//! The fuzz targets call these functions, and so does `tests/cases/properties.rs`, on stable with every run of the
//! tests.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hickory_proto::op::{Header, Message, MessageType, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request};
use mesh_ca::{SigningRequest, sha256};
use mesh_enrolment::{MAX_ADDRESSES, Token};
use mesh_proxy::access_log::delegation::DelegationScanner;
use mesh_proxy::http::message;
use mesh_proxy::outbound::destination::{self, Destination};
use mesh_shared::address::nobodys;
use mesh_shared::certificate::Leaf;
use mesh_shared::config::{Config, ListenerTarget, Mistake};
use mesh_shared::json;
use mesh_shared::policy::{Action, Asked, Mode, PathPattern, Rule, Rules};
use mesh_shared::registry::{Entry, Node, Registry, VERSION};
use mesh_shared::{AgentName, Identity, LocalAddr, LoopbackAddr, NodeName};
use mesh_telemetry::TraceContext;
use registryd::backend::etcd::{Key, Keys};
use registryd::dns_server::answer::{Transport, answer};
use registryd::dns_server::zone::{Zone, ZoneNode};
use registryd::membership::admission::{
    MAX_EXTRA_BYTES, MAX_ITEMS, MAX_TEXT_BYTES, Surroundings, admit, registrant,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use serde_json::Value;

/// The text of a `mesh.yaml`: each mistake names a key and a line that exists; accepted settings fit together;
/// a comment above everything moves the mistakes down by one line and changes nothing else.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let outcome = Config::parse(text);
    match &outcome {
        Ok(config) => fits_together(config),
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "refused without a mistake");
            mistakes.iter().for_each(|mistake| has_its_place(mistake, text));
        }
    }
    // A byte order mark may stand at the very beginning only.
    if text.starts_with('\u{feff}') {
        return;
    }
    match (outcome, Config::parse(&format!("# above\n{text}"))) {
        (Ok(mut config), Ok(again)) => {
            for warning in &mut config.warnings {
                warning.line = warning.line.map(|line| line + 1);
            }
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
        }
        (Err(mistakes), Err(again)) => {
            let moved: Vec<_> =
                mistakes.into_iter().map(|each| (each.key, each.line.map(|line| line + 1))).collect();
            let again: Vec<_> = again.into_iter().map(|each| (each.key, each.line)).collect();
            assert_eq!(moved, again);
        }
        (outcome, again) => panic!("a comment changes {outcome:?} to {again:?}"),
    }
}

fn fits_together(config: &Config) {
    let (mesh, outbound) = (&config.mesh, &config.proxy.outbound);
    assert!(mesh.stale_threshold > mesh.heartbeat_interval);
    let own = ListenerTarget::Node(mesh.node_name.clone());
    assert!(outbound.listeners.iter().all(|listener| listener.to.as_ref() != Some(&own)));
    let (mut addresses, mut paths) = (vec![outbound.listen], Vec::new());
    for listener in &outbound.listeners {
        match &listener.listen {
            LocalAddr::Tcp(address) => addresses.push(*address),
            LocalAddr::Unix(path) => paths.push(path),
        }
    }
    addresses.extend(config.proxy.admin.listen);
    if config.proxy.admin.socket_is_named {
        paths.push(&config.proxy.admin.socket);
    }
    let mut addresses: Vec<_> = addresses.into_iter().map(LoopbackAddr::socket_addr).collect();
    for (key, backend) in config.proxy.backend.addresses() {
        let taken = backend.socket_addrs().find(|each| each.port() != 0 && addresses.contains(each));
        assert_eq!(taken, None, "{key} is the sidecar's own");
    }
    let count = addresses.len() + paths.len();
    addresses.sort();
    addresses.dedup();
    paths.sort();
    paths.dedup();
    assert_eq!(addresses.len() + paths.len(), count, "one address for two purposes");
}

/// Whether no key is itself a list or a section.
fn has_scalar_keys(value: &serde_yaml::Value) -> bool {
    use serde_yaml::Value::{Mapping, Sequence, Tagged};
    match value {
        Mapping(map) => map.iter().all(|(key, value)| {
            !matches!(key, Mapping(_) | Sequence(_) | Tagged(_)) && has_scalar_keys(value)
        }),
        Sequence(items) => items.iter().all(has_scalar_keys),
        Tagged(tagged) => has_scalar_keys(&tagged.value),
        _ => true,
    }
}

/// What stands at a key such as `mesh.peers[1]`.
fn member<'d>(document: &'d serde_yaml::Value, key: &str) -> Option<&'d serde_yaml::Value> {
    key.split('.').try_fold(document, |value, part| {
        let (name, index) = part.trim_end_matches(']').split_once('[').unwrap_or((part, ""));
        let value = value.get(name)?;
        index.parse::<usize>().map_or(Some(value), |index| value.get(index))
    })
}

fn has_its_place(mistake: &Mistake, text: &str) {
    // The line breaks of YAML 1.1.
    let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
    let lines: Vec<_> = text.split("\r\n").flat_map(|part| part.split(breaks)).collect();
    let section = mistake.key.split(['.', '[']).next().unwrap_or_default();
    // What is no YAML may miss its end, on a line of its own.
    let last = lines.len() + usize::from(section.is_empty());
    assert!(mistake.line.is_none_or(|line| (1..=last).contains(&line)), "{mistake}");
    let starts = |all: &[&str]| all.iter().any(|start| mistake.message.starts_with(start));
    // These may be about any key of the file.
    let anywhere = starts(&["there is no mesh: section; is this one", "duplicate key"]);
    if section.is_empty() && !anywhere {
        let whole =
            ["not valid YAML", "tabs are", "expected sections", "the file is empty", "there is no mesh:"];
        assert!(starts(&whole), "without a key: {mistake}");
        return;
    }
    assert!(anywhere || ["mesh", "proxy", "registryd"].contains(&section), "{mistake}");
    // What has a key twice is not read as a whole.
    if let Ok(document) = serde_yaml::from_str::<serde_yaml::Value>(text) {
        if !has_scalar_keys(&document) {
            // Nobody writes that, and nothing behind such a key is found.
            return;
        }
        assert_eq!(mistake.line.is_some(), anywhere || document.get(section).is_some(), "{mistake}");
        if let Some((name, _)) = mistake.message.split_once(" is listed twice") {
            let member = format!("{:?}", member(&document, &mistake.key)).to_ascii_lowercase();
            assert!(member.contains(&name.to_ascii_lowercase()), "{mistake}");
        }
    }
    // Where nothing is quoted or aliased, and the place is no member of a list, the line shows a part of the key.
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
    if let Some(line) = mistake.line
        && mistake.key.chars().all(plain)
        && !text.contains(['"', '\'', '?', '&', '*', '!', '\\'])
    {
        assert!(mistake.key.split('.').any(|part| lines[line - 1].contains(part)), "{mistake}");
    }
}

/// A `mesh.json`: what is one is read, written and read again without any loss, and nothing else is read as one.
pub fn registry(data: &[u8]) {
    let value: Option<Value> = json::read_bytes(data).ok();
    let is_registry =
        value.as_ref().is_some_and(|value| value["version"] == VERSION && value["nodes"].is_object());
    let registry = match Registry::parse(data) {
        Ok(registry) => registry,
        Err(error) => {
            assert!(!is_registry, "a registry {error}");
            return;
        }
    };
    assert!(is_registry, "read as {registry:?}");

    let written = registry.to_json();
    assert_eq!(Registry::parse(&written).expect("what was written is a registry"), registry);
    let mut kept: Value = json::read_bytes(&written).expect("what was written is JSON");
    assert_eq!(kept["updatedAt"], registry.updated_at);
    // The only field that is put right; another program may write it as a fraction or leave it away.
    let mut value = value.unwrap_or_default();
    kept["updatedAt"].take();
    value["updatedAt"].take();
    assert_eq!(kept, value);
    // `Value` rounds what it reads; numbers must be exact.
    let (given, updated_at) = (numbers(data), registry.updated_at as f64);
    for number in numbers(&written) {
        assert!(given.contains(&number) || number == updated_at, "{number} was something else before");
    }

    for (id, node) in registry.iter_nodes() {
        let node: &Node = node;
        let entry = Entry::from(node.clone());
        let written: Value = json::read(entry.text()).expect("an entry is JSON");
        assert_eq!(json::read::<Node>(entry.text()).ok().as_ref(), Some(node), "{id}");
        for (key, field) in kept["nodes"][id].as_object().into_iter().flatten() {
            let kept = NODE_FIELDS.contains(&key.as_str()) || written.get(key) == Some(field);
            assert!(kept, "{id} lost {key}: {written}");
        }
    }
}

/// All numbers in a JSON document.
fn numbers(json: &[u8]) -> Vec<f64> {
    let (mut in_text, mut escaped) = (false, false);
    let parts = json.split(|byte| {
        match byte {
            b'"' if !escaped => in_text = !in_text,
            b'\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
        in_text || !(byte.is_ascii_digit() || b"+-.eE".contains(byte))
    });
    parts.filter_map(|part| std::str::from_utf8(part).ok()?.parse().ok()).collect()
}

/// Fields of a node whose form is put right when the node is written anew. `metadata` is not among them.
const NODE_FIELDS: [&str; 13] = [
    "id",
    "name",
    "role",
    "agents",
    "host",
    "port",
    "providers",
    "models",
    "capabilities",
    "status",
    "lastSeen",
    "registeredAt",
    "version",
];

/// A certificate in DER: the identity of one that is accepted is the same when it is read again from its text,
/// which is a legal value of a header, as is the common name between quotes.
pub fn certificate(data: &[u8]) {
    let Ok(leaf) = Leaf::parse(&CertificateDer::from(data)) else { return };
    let text = leaf.identity.to_string();
    assert_eq!(text.parse().as_ref(), Ok(&leaf.identity));
    assert_eq!(leaf.common_name.parse().as_ref(), Ok(&leaf.identity));
    for text in [&text, &leaf.common_name] {
        assert!(HeaderValue::from_str(text).is_ok_and(|value| value.to_str().is_ok()), "{text:?}");
        assert!(!text.contains([' ', '"', '\\', ';', ',']), "{text:?}");
    }
    let node = leaf.identity.node();
    assert_eq!(node.is_none(), matches!(leaf.identity, Identity::Device(_)));
    assert!(node.is_none_or(is_node_name), "{text:?}");
    // Whatever the validity is, its days can be counted.
    leaf.days_left(UnixTime::since_unix_epoch(Duration::from_secs(1 << 32)));
}

/// The path of a request, then rules, a line each: `allow`, `audit` or `deny`, and a pattern. What passes would pass as well
/// under the path that any server makes of it; a pattern is read again as it is shown.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let Some(path) = lines.next() else { return };
    let rules = lines.filter_map(|line| {
        let (action, pattern) = line.split_once(' ')?;
        let action = match action {
            "allow" => Action::Allow,
            "audit" => Action::Audit,
            "deny" => Action::Deny,
            _ => return None,
        };
        let pattern: PathPattern = pattern.parse().ok()?;
        assert_eq!(pattern.to_string().parse().as_ref(), Ok(&pattern), "{pattern}");
        Some(Rule { peer: None, caller: None, agent: None, method: None, path: Some(pattern), action })
    });
    let rules = Rules { rules: rules.collect(), mode: Mode::Enforce };
    if rules.rules.is_empty() {
        return;
    }
    let asked = Asked { peer: None, caller: None, agent: None, method: "POST", path, of_mesh: false };
    let severity = |action: Action| match action {
        Action::Allow => 0,
        Action::Audit => 1,
        Action::Deny => 2,
    };
    let decided = rules.decide(asked).action;
    for seen in as_servers_read(path) {
        let matching =
            rules.rules.iter().find(|rule| rule.path.as_ref().is_some_and(|each| covers(each, &seen)));
        let action = matching.map_or(Action::Deny, |rule| rule.action);
        assert!(severity(action) <= severity(decided), "{path:?} is {decided}, and as {seen:?} {action}");
    }
}

/// What servers make of a path: with escapes undone once or twice, with and without case, parameters, dots and
/// what Windows takes for a `/`.
fn as_servers_read(path: &str) -> Vec<String> {
    let mut all = vec![unescaped(path), unescaped(&unescaped(path))];
    let changes: [fn(&str) -> String; 4] = [
        |path| {
            path.split('/')
                .map(|segment| segment.split(';').next().unwrap_or_default())
                .collect::<Vec<_>>()
                .join("/")
        },
        |path| path.replace('\\', "/"),
        |path| {
            let mut left: Vec<&str> = Vec::new();
            for segment in path.split('/') {
                match segment {
                    "" | "." => {}
                    ".." => drop(left.pop()),
                    segment => left.push(segment),
                }
            }
            format!("/{}", left.join("/"))
        },
        str::to_lowercase,
    ];
    for change in changes {
        let changed: Vec<_> = all.iter().map(|path| change(path)).collect();
        all.extend(changed);
    }
    all
}

fn unescaped(path: &str) -> String {
    let digit = |at: usize| path.as_bytes().get(at).and_then(|digit| (*digit as char).to_digit(16));
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(&byte) = path.as_bytes().get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a pattern is for a path without escapes; one in small letters is compared without case.
fn covers(pattern: &PathPattern, path: &str) -> bool {
    let segments = |path: &str| -> Vec<String> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
    };
    let pattern = pattern.to_string();
    let (wanted, below) = pattern.strip_suffix("/**").map_or((&*pattern, false), |wanted| (wanted, true));
    let same = |wanted: &str, found: &str| {
        let (wanted, found) = (segments(wanted), segments(found));
        let enough = if below { found.len() >= wanted.len() } else { found.len() == wanted.len() };
        enough && wanted.iter().zip(&found).all(|(wanted, found)| wanted == "*" || wanted == found)
    };
    same(wanted, path) || (path == path.to_lowercase() && same(&wanted.to_lowercase(), path))
}

/// A token of an invitation, as text, and as the bytes within one that are whole: it is the same when it is written and read
/// again, and leads somewhere.
pub fn token(data: &[u8]) {
    let check = sha256(data);
    let whole = URL_SAFE_NO_PAD.encode([data, &check[..4]].concat());
    for text in std::str::from_utf8(data).ok().into_iter().chain([whole.as_str()]) {
        let Ok(token) = text.parse::<Token>() else { continue };
        assert_eq!(token.to_text().parse().as_ref(), Ok(&token));
        assert!((1..=MAX_ADDRESSES).contains(&token.addresses.len()));
        for address in &token.addresses {
            assert!(address.port != 0 && !address.host.is_empty(), "{address}");
            assert!(!address.host.contains(|c: char| c.is_control() || c.is_whitespace()), "{address}");
        }
        assert_eq!(token.identity.to_string().parse().as_ref(), Ok(&token.identity));
    }
}

/// The value of `traceparent`: what is read as one passes on as a valid one of the same trace, which is read alike, and from
/// the caller's own span; anything else begins a new trace, and takes `tracestate` away.
pub fn trace(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::from_iter([
        (HeaderName::from_static("traceparent"), value),
        (HeaderName::from_static("tracestate"), HeaderValue::from_static("a=b")),
    ]);
    let read = TraceContext::of_caller(&headers, None);
    let context = TraceContext::read(&headers, None);
    assert!(context.trace_id.0 != 0 && context.span_id.0 != 0);
    context.pass_on(&mut headers);
    let again = TraceContext::of_caller(&headers, None).expect("what is passed on is valid");
    assert_eq!((again.trace_id, again.sampled), (context.trace_id, context.sampled));
    match read {
        Some(read) => assert_eq!((again.trace_id, again.parent), (read.trace_id, read.parent)),
        None => assert!(context.parent.is_none() && !headers.contains_key("tracestate")),
    }
}

/// A request for a certificate, as PEM, and as DER in one: what is accepted names somebody, and is the same in another
/// program's PEM, and not when something follows it.
pub fn csr(data: &[u8]) {
    let pem = |der: &[u8], end: &str| {
        let body = STANDARD.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let (begin, close) = ("-----BEGIN CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----");
        format!("{begin}{end}{}{end}{close}{end}", lines.join(end))
    };
    let wrapped = pem(data, "\n");
    for text in std::str::from_utf8(data).ok().into_iter().chain([wrapped.as_str()]) {
        let Ok(request) = SigningRequest::from_pem(text) else { continue };
        let name = request.identity().to_string();
        assert_eq!(name.parse().as_ref(), Ok(request.identity()));
        let again = SigningRequest::from_pem(&pem(request.der(), "\r\n")).expect("the same in other lines");
        assert_eq!((again.identity(), again.key_digest()), (request.identity(), request.key_digest()));
        let longer = [request.der(), &[0]].concat();
        assert!(SigningRequest::from_pem(&pem(&longer, "\n")).is_err(), "something follows");
    }
}

/// A key of etcd and, from the next line on, its value: a key names its node in one way only, and an entry is the same when
/// it is read from what would be written.
pub fn etcd(data: &[u8]) {
    let keys = Keys::new("/mesh");
    let (key, value) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    match keys.parse(key) {
        Some(Key::Entry(name)) => {
            assert!(is_node_name(&name) && keys.entry(&name).as_bytes() == key, "{name}")
        }
        Some(Key::Alive(name)) => {
            assert!(is_node_name(&name) && keys.alive(&name).as_bytes() == key, "{name}")
        }
        None => {}
    }
    let Some(entry) = Entry::parse(value.strip_prefix(b"\n").unwrap_or(value)) else { return };
    let again = Entry::parse(entry.text().as_bytes()).expect("the text of an entry is one");
    assert_eq!((again.text(), again.node(), again.problem()), (entry.text(), entry.node(), entry.problem()));
    if let Some(node) = entry.node() {
        let mut updated = entry.clone();
        updated.update(Node::clone(node));
        assert_eq!(updated.node(), entry.node(), "it says the same already");
    }
}

/// The head of a request, as lines: method and target, then headers. What is accepted goes where the request says,
/// from a host name of the mesh or of this host, and takes no prefix along.
pub fn destination(data: &[u8]) {
    let Some(request) = request(data) else { return };
    if message::check_request(&request, false).is_err() {
        return;
    }
    let own = Destination::Node("ct111".parse().expect("a name"));
    for only in [None, Some(&own)] {
        let mut left = request.clone();
        if let Ok(wanted) = destination::read(&mut left, only, false, |_, port| port == 3000) {
            goes_where_it_says(&request, &left, &wanted.to, only);
        }
    }
}

fn request(data: &[u8]) -> Option<Parts> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let (method, target) = first.split_at(first.iter().position(|byte| *byte == b' ')?);
    let mut request = Request::builder().method(method).uri(&target[1..]);
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
        request = request.header(name, value[1..].trim_ascii());
    }
    Some(request.body(()).ok()?.into_parts().0)
}

fn goes_where_it_says(request: &Parts, left: &Parts, destination: &Destination, only: Option<&Destination>) {
    let path = |parts: &Parts| parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let (before, after) = (path(request), path(left));
    assert!(
        after.starts_with('/') || (&request.method, after.as_str()) == (&Method::OPTIONS, "*"),
        "{after:?} is left of {before:?}"
    );
    match destination {
        Destination::Node(node) => assert!(is_node_name(node), "{node}"),
        Destination::Agent(agent) => assert!(is_agent_name(agent), "{agent}"),
        Destination::Registry | Destination::Certificates => {}
    }

    let target = request.uri.host().map(str::to_owned);
    let lines = request.headers.get_all(HOST).iter();
    let lines = lines.map(|line| host_of(line.to_str().expect("a Host in text")).to_owned());
    let hosts: Vec<String> = target.into_iter().chain(lines.filter(|host| !host.is_empty())).collect();
    assert!(
        !hosts.is_empty() && hosts.iter().all(|host| in_mesh(host).is_some() || is_here(host)),
        "{hosts:?}"
    );
    let named = in_mesh(&hosts[0]);
    let to = |node: &str| matches!(destination, Destination::Node(to) if to.as_str() == node);
    if let Some(only) = only {
        assert!(destination == only && named.is_none_or(|named| to(&named)), "{destination:?}");
        assert_eq!(before, after);
        return;
    }
    if let Some(named) = named {
        let agent = matches!(destination, Destination::Agent(agent)
            if named.strip_suffix(".agent").is_some_and(|named| agent.as_str().eq_ignore_ascii_case(named)));
        assert!(agent || to(&named), "{named:?}: {destination:?}");
        assert_eq!(before, after);
        return;
    }
    let split = |rest: &str| {
        let (name, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        (name.to_owned(), format!("{}{rest}", if rest.starts_with('/') { "" } else { "/" }))
    };
    let header = |name| request.headers.get(name).and_then(|value| value.to_str().ok());
    let to_agent = |name: &str| matches!(destination, Destination::Agent(agent) if agent.as_str() == name);
    if let Some((name, rest)) = before.strip_prefix("/nodes/").map(split) {
        assert!(to(&name.to_ascii_lowercase()), "{before:?}: {destination:?}");
        assert_eq!(after, rest);
    } else if let Some((name, rest)) = before.strip_prefix("/agents/").map(split) {
        assert!(to_agent(&name), "{before:?}: {destination:?}");
        assert_eq!(after, rest);
    } else if let Some(node) = header("x-mesh-node") {
        assert!(to(&in_mesh(node).unwrap_or(node.to_ascii_lowercase())), "{node:?}: {destination:?}");
        assert_eq!(before, after);
    } else if let Some(agent) = header("x-mesh-agent") {
        assert!(to_agent(agent), "{agent:?}: {destination:?}");
        assert_eq!(before, after);
    } else {
        assert_eq!(*destination, Destination::Registry, "{before:?}");
        assert!(["/mesh/nodes", "/mesh/agents", "/mesh/events"].contains(&request.uri.path()), "{before:?}");
        assert_eq!(before, after);
    }
}

/// A `Host` without its port.
fn host_of(line: &str) -> &str {
    line.rfind(':')
        .filter(|at| line[at + 1..].bytes().all(|b| b.is_ascii_digit()))
        .map_or(line, |at| &line[..at])
}

/// What stands before `.mesh`, in lower case.
fn in_mesh(host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    host.strip_suffix('.').unwrap_or(&host).strip_suffix(".mesh").map(str::to_owned)
}

/// A name or address of the loopback interface.
fn is_here(host: &str) -> bool {
    let loopback = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets()[0] == 127,
        IpAddr::V6(address) => {
            address == Ipv6Addr::LOCALHOST || address.to_ipv4_mapped().is_some_and(|v4| v4.octets()[0] == 127)
        }
    };
    host.eq_ignore_ascii_case("localhost")
        || host.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(loopback)
}

fn is_node_name(name: &NodeName) -> bool {
    let text = name.as_str();
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && text.trim_matches('-') == text
}

fn is_agent_name(name: &AgentName) -> bool {
    let text = name.as_str();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '_', '-'])
}

/// The body of a delegation: what is found in it does not depend on how it comes in pieces, and is what serde
/// finds, or the beginning of that.
pub fn delegation(data: &[u8]) {
    for max_chars in [0, 100] {
        let (from, message) = scan(max_chars, [data]);
        let found = (from.as_deref(), message.as_deref());
        for size in [1, 5, 64] {
            let again = scan(max_chars, data.chunks(size));
            assert_eq!((again.0.as_deref(), again.1.as_deref()), found, "in pieces of {size}");
        }
        if let Ok(Value::Array(_)) = serde_json::from_slice(data) {
            assert_eq!(found, (None, None), "in a list");
            // Which serde would take for a struct.
            continue;
        }
        let Ok(delegation) = serde_json::from_slice::<Delegation>(data) else { continue };
        for (found, whole) in [(found.0, &delegation.from_agent), (found.1, &delegation.message)] {
            let whole = whole.as_ref().and_then(Value::as_str);
            let Some(found) = found else {
                // A key may be written with escapes; nobody does, and the scanner does not look for them.
                assert!(whole.is_none() || data.contains(&b'\\'), "{whole:?} was not found");
                continue;
            };
            let whole = whole.expect("serde finds it too");
            assert!(whole.starts_with(found), "{found:?} is not how {whole:?} begins");
            assert!(found == whole || found.chars().count() > max_chars.max(64), "{found:?} is too short");
        }
    }
}

/// Neither field twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delegation {
    from_agent: Option<Value>,
    message: Option<Value>,
}

fn scan<'d>(
    max_chars: usize,
    pieces: impl IntoIterator<Item = &'d [u8]>,
) -> (Option<String>, Option<String>) {
    let mut scanner = DelegationScanner::new(max_chars);
    pieces.into_iter().for_each(|piece| scanner.feed(piece));
    (scanner.from_agent().map(Into::into), scanner.message().map(Into::into))
}

/// The body of a join by node ct112: what is admitted is ct112 and nobody else, and within the limits.
pub fn admission(data: &[u8]) {
    let other = |name: &NodeName| name.as_str() == "ct111";
    let others = Surroundings { is_node: &other, ..Surroundings::NOBODY };
    for cn in [None, Some("opus@ct112"), Some("device:ct112"), Some("ct112.example")] {
        assert!(registrant(cn).is_err(), "{cn:?} was admitted");
    }
    let ct112 = registrant(Some("ct112.mesh")).expect("a node");
    assert_eq!(Ok(&ct112), registrant(Some("ct112")).as_ref());
    let Ok(node) = admit(data, &ct112, &others) else { return };
    assert_eq!(node.name.to_ascii_lowercase(), "ct112");

    let texts = [&node.id, &node.host, &node.version].into_iter().chain(&node.role);
    let lists = [&node.agents, &node.providers, &node.models, &node.capabilities];
    assert!(lists.iter().all(|list| list.len() <= MAX_ITEMS), "{node:?}");
    assert!(texts.chain(lists.into_iter().flatten()).all(|text| text.len() <= MAX_TEXT_BYTES), "{node:?}");
    assert!(
        node.agents.iter().all(|agent| agent.parse().is_ok_and(|agent| is_agent_name(&agent))),
        "{node:?}"
    );
    assert!(node.port > 0);
    let further = serde_json::to_vec(&node.extra).map_or(usize::MAX, |json| json.len());
    let metadata = serde_json::to_vec(&node.metadata).map_or(usize::MAX, |json| json.len());
    assert!(further + metadata <= MAX_EXTRA_BYTES, "{further} and {metadata} bytes");

    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
    assert!(!node.host.is_empty() && node.host.bytes().all(allowed), "{:?}", node.host);
    assert!(
        in_mesh(&node.host).is_none_or(|named| named == "ct112" || named.parse::<NodeName>().is_err()),
        "{:?}",
        node.host
    );
    assert!(!node.host.eq_ignore_ascii_case("ct111"));
    let literal = node.host.parse().ok();
    assert!(literal.is_none_or(|address| nobodys(address, false).is_none()), "{:?}", node.host);
    // It can be written to the registry and read again.
    let entry = Entry::from(node);
    assert_eq!(json::read::<Node>(entry.text()).ok().as_ref(), entry.node().map(|node| &**node));
}

/// A DNS request: exactly those with a header that says so are answered, by a message with the same id and
/// question, no larger than the asker can take.
pub fn dns(data: &[u8]) {
    let header = Header::read(&mut BinDecoder::new(data)).ok();
    let asked = header.filter(|header| header.message_type == MessageType::Query);
    let request = Message::from_vec(data).ok();
    for zone in [None, Some(&*ZONE)] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let reply = answer(zone, data, transport);
            assert_eq!(reply.is_some(), asked.is_some());
            let Some(reply) = reply else { continue };
            let payload =
                request.as_ref().and_then(|request| request.edns.as_ref()).map(|edns| edns.max_payload());
            let limit = match transport {
                Transport::Udp => payload.unwrap_or(0).clamp(512, 1232),
                Transport::Tcp => u16::MAX,
            };
            assert!(reply.len() <= usize::from(limit), "{} bytes", reply.len());
            assert_eq!(reply[..2], data[..2]);
            let reply = Message::from_vec(&reply).expect("an answer is a message");
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            assert_eq!(Some(reply.metadata.op_code), asked.as_ref().map(|header| header.op_code));
            assert!(transport == Transport::Udp || !reply.metadata.truncation);
            if reply.metadata.response_code == ResponseCode::NoError {
                assert_eq!(Some(&reply.queries), request.as_ref().map(|request| &request.queries));
            }
        }
    }
}

/// A node of each kind; what ct111 has fits no datagram.
static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let node = |name: &str, addresses: Option<&[&str]>, agents: u8| ZoneNode {
        name: name.parse().expect("a name"),
        known: true,
        addresses: addresses
            .map(|all| all.iter().map(|address| address.parse().expect("an address")).collect()),
        port: 3000,
        agents: (0..agents).map(|i| format!("agent-number-{i}")).collect(),
        healthy: true,
    };
    let addresses: &[&str] = &["192.168.10.110", "fd00::110"];
    let nodes =
        [node("ct110", Some(addresses), 2), node("ct111", Some(&["10.0.0.1"]), 70), node("ct112", None, 0)];
    Zone::new("ct110".parse().expect("a name"), 7, nodes)
});
