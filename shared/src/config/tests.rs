use super::*;

const MINIMAL: &str = "\
mesh:
  enabled: true
  node_name: ct110 # must match the cert CN
  tls: true # use /rivet-shared/rivet-ca/issued/<node_name>.{crt,key}
  agent_channel_port: 3000
  storage_dir: /rivet-shared
  heartbeat_interval_ms: 30000
  stale_threshold_ms: 90000
  discovery:
    mode: seed
    seed_host: ct110.mesh # use .mesh hostname - matches cert SAN
    seed_port: 3000
";

/// Every key there is, so that a key can be broken at every level.
const FULL: &str = "\
runtime: {anything: [goes, here]}
mesh:
  enabled: true
  node_name: ct110
  tls:
    ca_path: /ca.pem
    cert_path: /a.crt
    key_path: /a.key
  advertise_host: 10.0.0.1
  peers:
    - name: ct111
      host: 10.0.0.2
      port: 3000
  discovery:
    mode: static
proxy:
  inbound:
    address: 127.0.0.1
  outbound:
    listen: 127.0.0.1:3001
    listeners:
      - listen: 127.0.0.1:3111
        node: ct111
  backend:
    address: 127.0.0.1:8080
  limits:
    max_body_bytes: 1000
  timeouts:
    handshake_ms: 1000
  policy:
    allow: [ct111, opus@ct111, 'device:phone']
  admin:
    listen: 127.0.0.1:3002
  log:
    task_preview_chars: 0
registryd:
  agents:
    - opus
    - name: grok
      provider: xai
  dns:
    upstream: [127.0.0.1, '127.0.0.1:5353']
    listen: 127.0.0.1:5353
  metadata: {rack: 3}
";

fn mistakes(text: &str) -> Vec<String> {
    Config::parse(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn the_reference_documents_minimal_example_works() {
    let config = Config::parse(MINIMAL).unwrap();
    assert_eq!(config.mesh.tls.key_path.to_str(), Some("/rivet-shared/rivet-ca/issued/ct110.key"));
    assert_eq!(config.mesh.tls.ca_path.to_str(), Some("/rivet-shared/rivet-ca/intermediate/ca-chain.pem"));
    assert_eq!(config.mesh.stale_threshold.as_millis(), 90_000);
    let seed = Seed { node: "ct110".parse().unwrap(), port: 3000 };
    assert_eq!(config.mesh.discovery, Some(Discovery::Seed(seed)));
    assert_eq!(config.proxy.outbound.listen.to_string(), "127.0.0.1:3001");
    assert_eq!(config.proxy.limits.max_body_bytes, 10 * 1024 * 1024);
}

#[test]
fn every_default_of_the_reference_document_holds() {
    let config = Config::parse("mesh:\n  node_name: a\n  tls: true\n").unwrap();
    assert!(!config.mesh.enabled);
    assert_eq!(config.mesh.agent_channel_port, 3000);
    assert_eq!(config.mesh.storage_dir.to_str(), Some("/rivet-shared"));
    assert_eq!(config.mesh.heartbeat_interval.as_millis(), 30_000);
    assert_eq!(config.mesh.discovery, None);
    let seed = "mesh: {node_name: a, tls: true, discovery: {mode: seed, seed_host: b.mesh}}";
    let Some(Discovery::Seed(seed)) = Config::parse(seed).unwrap().mesh.discovery else { panic!("no seed") };
    assert_eq!(seed.port, 3100);
}

#[test]
fn a_full_file_with_other_sections_loads() {
    let config = Config::parse(FULL).unwrap();
    assert_eq!(config.proxy.outbound.listeners.len(), 1);
    assert_eq!(config.registryd.agents[1].provider.as_deref(), Some("xai"));
    assert_eq!(config.registryd.providers, ["xai"]);
    assert_eq!(config.registryd.dns.upstream[0].port(), 53);
}

#[test]
fn an_unknown_key_at_any_level_is_refused_with_its_line() {
    let mut tried = 0;
    for (i, line) in FULL.lines().enumerate().skip(1) {
        let indent = line.len() - line.trim_start_matches([' ', '-']).len();
        if indent == 0 || !line.contains(':') || line.contains("rack") {
            continue;
        }
        let mut lines: Vec<_> = FULL.lines().map(String::from).collect();
        lines.insert(
            i + usize::from(line.trim_start().starts_with('-')),
            format!("{}zzz: 1", " ".repeat(indent)),
        );
        let text = lines.join("\n");
        let found = mistakes(&text);
        let expected = format!("line {}: ", i + 1 + usize::from(line.trim_start().starts_with('-')));
        assert!(
            found.iter().any(|each| each.starts_with(&expected) && each.contains("zzz: unknown key")),
            "{expected} not in {found:?} for\n{text}"
        );
        tried += 1;
    }
    assert!(tried > 25);
}

#[test]
fn all_mistakes_are_reported_together_with_line_and_expectation() {
    let found = mistakes(
        "mesh:\n  enabled: yes please\n  node_name: ct_110\n  tls: false\n  agent_chanel_port: 3000\n\
         \x20 heartbeat_interval_ms: 90000\nproxy:\n  backend: {address: 192.168.1.5:8080}\n  limits:\n\
         \x20   max_body_bytes: lots\nregistryd:\n  agents: [a, a]\n",
    );
    for (line, part) in [
        (2, "mesh.enabled: expected true or false"),
        (3, "mesh.node_name: \"ct_110\" is not a node name"),
        (4, "mesh.tls: is false; mutual TLS is required"),
        (5, "mesh.agent_chanel_port: unknown key; did you mean agent_channel_port?"),
        (8, "proxy.backend.address: 192.168.1.5:8080 is not a loopback address"),
        (10, "proxy.limits.max_body_bytes: expected a whole number"),
        (12, "registryd.agents[1]: a is listed twice"),
    ] {
        let start = format!("line {line}: {part}");
        assert!(found.iter().any(|each| each.starts_with(&start)), "{start:?} not in {found:#?}");
    }
    assert!(
        found.iter().any(|each| each.contains("mesh.stale_threshold_ms: 90000 must be larger")),
        "{found:#?}"
    );
}

#[test]
fn without_tls_nothing_loads_and_the_message_says_why() {
    for text in ["", "mesh:\n  node_name: a\n", "mesh: {node_name: a, tls: false}"] {
        let found = mistakes(text);
        assert!(found.iter().any(|each| each.contains("there is no plaintext mesh")), "{text:?}: {found:?}");
    }
}

#[test]
fn the_deprecated_secret_is_a_warning() {
    let config = Config::parse("mesh: {node_name: a, tls: true, secret: hush}").unwrap();
    assert!(config.warnings[0].to_string().starts_with("mesh.secret: deprecated"));
    assert!(!config.warnings[0].to_string().contains("hush"));
}

#[test]
fn a_repeated_key_and_broken_yaml_name_their_line() {
    assert!(mistakes("mesh:\n  enabled: true\n  enabled: false\n")[0].contains("duplicate"));
    assert!(
        mistakes("mesh:\n  - a\n b: c\n")[0].starts_with("line "),
        "{:?}",
        mistakes("mesh:\n  - a\n b: c\n")
    );
}
