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
      - listen: unix:/run/mesh-proxy/opus.sock
        as_agent: opus
        users: [opus, 1001]
        cert_path: /opus.crt
        key_path: /opus.key
    policy:
      rules:
        - node: ct111
          path: /x
          action: deny
  backend:
    address: 127.0.0.1:8080
    protocol: auto
    agents: {grok: {address: localhost:8081, protocol: h2c}, opus: {address: unix:/run/opus.sock}}
  limits:
    max_body_bytes: 1000
    max_requests_per_peer: 10
  timeouts:
    handshake_ms: 1000
    body_ms: 1000
  policy:
    allow: [ct111, opus@ct111, 'device:phone']
    mode: audit
    rules:
      - peer: '*@*'
        method: POST
        path: /api/**
        action: allow
  admin:
    listen: 127.0.0.1:3002
    socket: /run/mesh-proxy/admin.sock
  live:
    peers: [ct111]
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
  store:
    kind: etcd
    export: /var/lib/mesh/mesh.json
    etcd:
      endpoints: ['https://10.0.0.1:2379']
      prefix: /mesh
      ca_path: /etc/mesh/etcd/ca.pem
      cert_path: /etc/mesh/etcd/client.crt
      key_path: /etc/mesh/etcd/client.key
      username: ct110
      password_file: /etc/mesh/etcd/password
telemetry:
  otlp:
    endpoint: https://collector.example.org:4318
    ca_path: /ca.pem
    headers_file: /headers
    sample_ratio: 0.25
    timeout_ms: 1000
    max_queue: 10
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
    let config = Config::parse("mesh:\n  enabled: true\n  node_name: a\n  tls: true\n").unwrap();
    assert_eq!(config.mesh.agent_channel_port, 3000);
    assert_eq!(config.mesh.storage_dir.to_str(), Some("/rivet-shared"));
    assert_eq!(config.mesh.heartbeat_interval.as_millis(), 30_000);
    assert_eq!(config.mesh.discovery, None);
    let seed = "mesh: {enabled: true, node_name: a, tls: true, discovery: {mode: seed, seed_host: b.mesh}}";
    let Some(Discovery::Seed(seed)) = Config::parse(seed).unwrap().mesh.discovery else { panic!("no seed") };
    assert_eq!(seed.port, 3100);
}

#[test]
fn a_full_file_with_other_sections_loads() {
    let config = Config::parse(FULL).unwrap();
    assert_eq!(config.proxy.outbound.listeners.len(), 2);
    let agent = &config.proxy.outbound.listeners[1];
    assert_eq!(agent.access.users, Some(vec![LocalUser::Name("opus".into()), LocalUser::Id(1001)]));
    assert_eq!((agent.access.mode, agent.to.is_none()), (0o666, true));
    assert_eq!(config.registryd.agents[1].provider.as_deref(), Some("xai"));
    assert_eq!(config.registryd.providers, ["xai"]);
    assert_eq!(config.registryd.dns.upstream[0].port(), 53);
    let otlp = config.telemetry.otlp.unwrap();
    assert_eq!(otlp.endpoint.traces_url(), "https://collector.example.org:4318/v1/traces");
    assert_eq!((otlp.sample_ratio, otlp.max_queue), (0.25, 10));
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
    for text in
        ["mesh:\n  enabled: true\n  node_name: a\n", "mesh: {enabled: true, node_name: a, tls: false}"]
    {
        let found = mistakes(text);
        assert!(found.iter().any(|each| each.contains("there is no plaintext mesh")), "{text:?}: {found:?}");
    }
}

/// The only mistake in a mesh section that has all it needs and these lines.
fn only_mistake(lines: &str) -> String {
    let found = mistakes(&format!("mesh: {{enabled: true, node_name: a, tls: true}}\n{lines}"));
    assert_eq!(found.len(), 1, "{lines:?}: {found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn where_nothing_is_to_start_that_is_all_there_is_to_say() {
    for (text, message) in [
        ("", "the file is empty; expected at least a mesh: section"),
        ("# nothing\n", "the file is empty; expected at least a mesh: section"),
        ("registryd: {}\n", "there is no mesh: section"),
        ("runtime: {}\nmesh:\n", "line 2: mesh: is empty"),
        (
            "runtime: {}\nMesh: {enabled: true}\n",
            "line 2: Mesh: there is no mesh: section; is this one meant?",
        ),
        ("mesh: {node_name: a}\n", "line 1: mesh.enabled: is not set, so nothing starts; set it to true"),
        (
            "mesh:\n  node_name: a\n  enabled: false\n",
            "line 3: mesh.enabled: is false, so nothing starts; set it to true",
        ),
        (
            "mesh: {enabled: false, node_name: a, tls: false}",
            "line 1: mesh.enabled: is false, so nothing starts; set it to true",
        ),
    ] {
        assert_eq!(mistakes(text), [message], "{text:?}");
    }
}

#[test]
fn a_section_that_is_nearly_one_of_ours_is_remarked_on() {
    let text = "runtime: {}\nmesh: {enabled: true, node_name: a, tls: true}\nregistyd: {agents: [opus]}\nPROXY: {}\n\
                memory: {}\nagents: {}\ndeployment: {}\n<<: {}\n";
    let remarks: Vec<_> = Config::parse(text).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        remarks,
        [
            "line 3: registyd: is ignored; did you mean registryd?",
            "line 4: PROXY: is ignored; did you mean proxy?",
            "line 8: <<: is ignored: merge keys are not supported",
        ]
    );
}

#[test]
fn a_mistake_is_told_once_and_in_plain_words() {
    for (lines, message) in [
        (
            "proxy: {policy: {allow: }}",
            "line 2: proxy.policy.allow: is empty; write [] for nobody, or remove the key for everybody",
        ),
        (
            "proxy: {inbound: {address: '0.0.0.0:3000'}}",
            "line 2: proxy.inbound.address: expected an address without a port, found \"0.0.0.0:3000\"; the port is mesh.agent_channel_port",
        ),
        (
            "proxy: {inbound: {address: eth0}}",
            "line 2: proxy.inbound.address: \"eth0\" is not an IP address such as 0.0.0.0 or ::",
        ),
        (
            "proxy:\n  outbound:\n    listeners:\n    - ct111",
            "line 5: proxy.outbound.listeners[0]: expected {listen: 127.0.0.1:3111, node: ct111}, {listen: 127.0.0.1:3112, agent: grok} or {listen: 'unix:/run/mesh-proxy/outbound.sock'}, found the text \"ct111\"",
        ),
        (
            "proxy: {outbound: {listeners: [{listen: '127.0.0.1:3111'}]}}",
            "line 2: proxy.outbound.listeners[0]: expected {listen: 127.0.0.1:3111, node: ct111}, {listen: 127.0.0.1:3112, agent: grok} or {listen: 'unix:/run/mesh-proxy/outbound.sock'}",
        ),
        (
            "proxy: {outbound: {listeners: [{listen: 'unix:run/mesh.sock', node: b}]}}",
            "line 2: proxy.outbound.listeners[0].listen: \"run/mesh.sock\" is not the path of a unix socket: it must be absolute and have at most 107 bytes, as in unix:/run/opus.sock",
        ),
        (
            "proxy: {outbound: {listeners: [{listen: 'unix:/run/mesh.sock', mode: '660'}]}}",
            "line 2: proxy.outbound.listeners[0].mode: expected four octal digits between quotes, such as \"0660\", found \"660\"",
        ),
        (
            "proxy: {outbound: {listeners: [{listen: '127.0.0.1:3111', node: b, group: mesh}]}}",
            "line 2: proxy.outbound.listeners[0].group: is for unix sockets only",
        ),
        (
            "proxy: {outbound: {listeners: [{listen: 'unix:/run/a'}, {listen: 'unix:/run/a', agent: b}]}}",
            "line 2: proxy.outbound.listeners[1].listen: unix:/run/a is taken by proxy.outbound.listeners[0].listen",
        ),
        ("proxy: {<<: {threads: 2}}", "line 2: proxy.<<: merge keys are not supported; write the keys out"),
        (
            "registryd: {dns: {listen: 127.0.0.1}}",
            "line 2: registryd.dns.listen: expected an address and port such as 127.0.0.1:5353, found \"127.0.0.1\"",
        ),
        (
            "registryd: {dns: {listen: '0.0.0.0:53'}}",
            "line 2: registryd.dns.listen: expected one address of this host, such as 127.0.0.1:5353, found 0.0.0.0:53",
        ),
        (
            "registryd: {agents: [{provider: xai}]}",
            "line 2: registryd.agents[0]: name is missing, as in {name: opus}",
        ),
        (
            "registryd: {agents: [7]}",
            "line 2: registryd.agents[0]: expected a name, or {name: opus, provider: anthropic}, found 7",
        ),
    ] {
        assert_eq!(only_mistake(lines), message, "{lines:?}");
    }
    let in_mesh = |rest: &str| mistakes(&format!("mesh: {{enabled: true, node_name: a, {rest}}}"));
    for (rest, message) in [
        ("tls: 'true'", "mesh.tls: expected true, false or a section, found the text \"true\""),
        (
            "tls: true, peers: [ct111]",
            "mesh.peers[0]: expected {name: ct111, host: 192.168.10.111}, found the text \"ct111\"",
        ),
        (
            "tls: true, peers: [{host: 10.0.0.1}]",
            "mesh.peers[0]: name is missing; expected {name: ct111, host: 192.168.10.111}",
        ),
        (
            "tls: true, peers: [{port: 3000}], discovery: {mode: static}",
            "mesh.peers[0]: name is missing; expected {name: ct111, host: 192.168.10.111}",
        ),
        (
            "tls: true, peers: [{name: b, host: 'b:3000'}]",
            "mesh.peers[0].host: \"b:3000\" is neither a host name nor an address (the port goes to port:)",
        ),
    ] {
        assert_eq!(in_mesh(rest), [format!("line 1: {message}")], "{rest:?}");
    }
}

#[test]
fn what_is_known_in_a_section_is_listed_once() {
    let told = only_mistake("registryd: {agents: [{name: opus, zzzzzzzzz: 1}]}");
    assert!(
        told.ends_with("registryd.agents[0].zzzzzzzzz: unknown key; known here: name, id, provider, model"),
        "{told}"
    );
    let told = mistakes("mesh: {enabled: true, node_name: a, tls: true, zzzzzzzzzzzz: 1}").remove(0);
    assert_eq!(told.matches("node_name").count(), 1, "{told}");
}

#[test]
fn one_text_counts_as_a_list_of_one() {
    let text =
        "mesh: {enabled: true, node_name: a, tls: true}\nregistryd: {agents: opus, capabilities: chat}";
    let config = Config::parse(text).unwrap();
    assert_eq!(config.registryd.agents[0].name, "opus");
    assert_eq!(config.registryd.capabilities, ["chat"]);
}

/// A listener that cannot be read is not a reason to look at the wrong one of the others.
#[test]
fn a_listener_is_named_by_its_place_in_the_file() {
    let listeners = "- {node: b}\n    - {node: a, listen: '127.0.0.1:3001'}";
    let text = format!(
        "mesh: {{enabled: true, node_name: a, tls: true}}\nproxy:\n  outbound:\n    listeners:\n    {listeners}"
    );
    let told = mistakes(&text);
    assert!(told[0].starts_with("line 5: proxy.outbound.listeners[0]: expected {listen"), "{told:?}");
    assert!(told[1].starts_with("line 6: proxy.outbound.listeners[1].node: a is this node"), "{told:?}");
    assert!(told[2].starts_with("line 6: proxy.outbound.listeners[1].listen: 127.0.0.1:3001 is"), "{told:?}");
    assert_eq!(told.len(), 3);
}

#[test]
fn an_address_is_given_away_once() {
    for (port, rest, message) in [
        (
            3001,
            "",
            "line 1: mesh.agent_channel_port: [::]:3001 is taken by proxy.outbound.listen (127.0.0.1:3001)",
        ),
        (
            8080,
            "",
            "line 1: mesh.agent_channel_port: [::]:8080 is taken by proxy.backend.address (127.0.0.1:8080)",
        ),
        (
            4000,
            "proxy: {outbound: {listen: '127.0.0.1:4000'}}",
            "line 1: mesh.agent_channel_port: [::]:4000 is taken by proxy.outbound.listen (127.0.0.1:4000)",
        ),
        (
            4000,
            "proxy: {inbound: {address: 0.0.0.0}, admin: {listen: '127.0.0.1:4000'}}",
            "line 2: proxy.admin.listen: 127.0.0.1:4000 is taken by mesh.agent_channel_port (0.0.0.0:4000)",
        ),
        (
            4000,
            "proxy: {outbound: {listeners: [{node: b, listen: '127.0.0.1:3001'}]}}",
            "line 2: proxy.outbound.listeners[0].listen: 127.0.0.1:3001 is taken by proxy.outbound.listen (127.0.0.1:3001)",
        ),
        (
            4000,
            "proxy: {backend: {address: '[::1]:4000'}}",
            "line 2: proxy.backend.address: [::1]:4000 is taken by mesh.agent_channel_port ([::]:4000)",
        ),
        (
            4000,
            "proxy: {backend: {address: 'localhost:3001'}}",
            "line 2: proxy.backend.address: 127.0.0.1:3001 is taken by proxy.outbound.listen (127.0.0.1:3001)",
        ),
        (
            4000,
            "registryd: {dns: {listen: '127.0.0.1:8080'}}",
            "line 2: registryd.dns.listen: 127.0.0.1:8080 is taken by proxy.backend.address (127.0.0.1:8080)",
        ),
        (
            4000,
            "registryd: {dns: {listen: '10.0.0.1:4000'}}",
            "line 2: registryd.dns.listen: 10.0.0.1:4000 is taken by mesh.agent_channel_port ([::]:4000)",
        ),
    ] {
        let text =
            format!("mesh: {{enabled: true, node_name: a, tls: true, agent_channel_port: {port}}}\n{rest}");
        assert_eq!(mistakes(&text), [format!("{message}; each needs a port of its own")], "{text}");
    }
    for rest in [
        "proxy: {inbound: {address: 10.0.0.1}, admin: {listen: '127.0.0.1:4000'}}",
        "proxy: {inbound: {address: 0.0.0.0}, admin: {listen: '[::1]:4000'}}",
        "proxy: {outbound: {listen: '127.0.0.1:0'}, admin: {listen: '127.0.0.1:0'}}",
        "proxy: {outbound: {listen: '127.0.0.2:8080'}}",
    ] {
        let text =
            format!("mesh: {{enabled: true, node_name: a, tls: true, agent_channel_port: 4000}}\n{rest}");
        assert_eq!(mistakes(&text), [""; 0], "{text}");
    }
}

#[test]
fn agents_have_servers_of_their_own_and_the_protocol_of_the_section() {
    let of = |backend: &str| {
        let mesh = "mesh: {enabled: true, node_name: a, tls: true}";
        Config::parse(&format!("{mesh}\nproxy: {{backend: {backend}}}")).unwrap().proxy.backend
    };
    let plain = of("{}");
    assert_eq!(
        (plain.server.address.to_string().as_str(), plain.server.protocol),
        ("127.0.0.1:8080", Protocol::Auto)
    );
    let several = of(
        "{protocol: h2c, agents: {grok: {address: 'localhost:8081'}, Opus-4.1: {address: 'unix:/o', protocol: http1}, \
         haiku: {address: 'localhost:8081'}}}",
    );
    let protocol = |agent: &str| several.agents[agent].protocol;
    assert_eq!(
        (several.server.protocol, protocol("grok"), protocol("Opus-4.1")),
        (Protocol::H2c, Protocol::H2c, Protocol::Http1)
    );
    let addresses: Vec<_> = several.addresses().iter().map(|(_, address)| address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:8080", "unix:/o", "localhost:8081"], "grok and haiku share one");
}

#[test]
fn a_wrong_backend_is_named() {
    for (backend, message) in [
        ("{protocol: http2}", "protocol: expected auto, http1 or h2c, found \"http2\""),
        ("{agents: {grok: {}}}", "agents.grok: address is missing; expected {address: 127.0.0.1:8081}"),
        ("{agents: {grok: 8081}}", "agents.grok: expected {address: 127.0.0.1:8081}, found 8081"),
        (
            "{agents: {grok: {address: '10.0.0.1:80'}}}",
            "agents.grok.address: 10.0.0.1:80 is not a loopback address; plain HTTP stays on this host (use 127.0.0.1 or [::1])",
        ),
        (
            "{agents: {grok: {address: '127.0.0.1:1', adress: x}}}",
            "agents.grok.adress: unknown key; did you mean address?",
        ),
        (
            "{agents: {gr/ok: {address: '127.0.0.1:1'}}}",
            "agents.gr/ok: \"gr/ok\" is not an agent name: 1 to 64 letters, digits, '.', '_' and '-', starting with a letter or digit (as in opus)",
        ),
        (
            "{agents: {7: {address: '127.0.0.1:1'}}}",
            "agents.7: expected a text, found 7 (put it in quotes if it is one)",
        ),
        (
            "{address: 'unix:opus.sock'}",
            "address: \"opus.sock\" is not the path of a unix socket: it must be absolute and have at most 107 bytes, as in unix:/run/opus.sock",
        ),
        (
            "{agents: {grok: {address: 'localhost:3001'}}}",
            "agents.grok.address: 127.0.0.1:3001 is taken by proxy.outbound.listen (127.0.0.1:3001); each needs a port of its own",
        ),
        (
            "{agents: {grok: {address: 'localhost:3000'}}}",
            "agents.grok.address: 127.0.0.1:3000 is taken by mesh.agent_channel_port ([::]:3000); each needs a port of its own",
        ),
        (
            "{agents: {grok: {address: 'unix:/run/mesh/registryd.sock'}}}",
            "agents.grok.address: unix:/run/mesh/registryd.sock is taken by registryd.socket",
        ),
    ] {
        let told = only_mistake(&format!("proxy: {{backend: {backend}}}"));
        assert_eq!(told, format!("line 2: proxy.backend.{message}"));
    }
}

#[test]
fn the_default_files_are_named_as_the_node_is_written() {
    let config = Config::parse("mesh: {enabled: true, node_name: CT110, tls: true}").unwrap();
    assert_eq!(config.mesh.node_name, *"ct110");
    assert_eq!(config.mesh.tls.cert_path.to_str(), Some("/rivet-shared/rivet-ca/issued/CT110.crt"));
}

#[test]
fn the_deprecated_secret_is_a_warning() {
    let config = Config::parse("mesh: {enabled: true, node_name: a, tls: true, secret: hush}").unwrap();
    assert!(config.warnings[0].to_string().starts_with("line 1: mesh.secret: deprecated"));
    assert!(!config.warnings[0].to_string().contains("hush"));
}

#[test]
fn a_repeated_key_and_broken_yaml_name_their_line() {
    for (text, start) in [
        ("mesh:\n  enabled: true\n  tls: true\n  enabled: false\n", "line 4: mesh.enabled: duplicate key"),
        ("mesh: {}\na: 1\nmesh: {}\n", "line 3: mesh: duplicate key"),
        (
            "mesh:\n  peers:\n    - {name: a}\n    - name: b\n      port: 1\n      name: c\n",
            "line 6: mesh.peers[1].name: duplicate key",
        ),
        ("mesh:\n\tenabled: true\n", "line 2: tabs are not allowed, use spaces"),
        ("mesh:\n  enabled: true\n\ttls: true\n", "line 3: tabs are not allowed, use spaces"),
        ("mesh:\n  enabled: true\n  \ttls: true\n", "line 3: tabs are not allowed, use spaces"),
        ("mesh:\n  - a\n b: c\n", "line "),
        ("just words\n", "line 1: expected sections such as mesh:, found the text"),
    ] {
        let found = mistakes(text);
        assert!(found.len() == 1 && found[0].starts_with(start), "{text:?}: {found:?}");
    }
}

#[test]
fn a_text_that_is_not_utf_8_is_called_that() {
    let file = std::env::temp_dir().join(format!("mesh-config-{}.yaml", std::process::id()));
    std::fs::write(&file, b"mesh:\n  node_name: caf\xe9\n").unwrap();
    let error = Config::load(&file).unwrap_err().to_string();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(
        error,
        format!("{}: line 2: is not UTF-8 text; save the file in that encoding", file.display())
    );
}

#[test]
fn an_etcd_store_is_complete_and_sends_no_password_in_the_clear() {
    let parse = |store: &str| {
        let text = format!(
            "mesh: {{enabled: true, node_name: ct110, tls: true}}\nregistryd: {{store: {{kind: etcd, {store}}}}}"
        );
        Config::parse(&text)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    let config = parse("etcd: {endpoints: ['https://10.0.0.1:2379'], ca_path: /ca.pem}").unwrap();
    let etcd = config.registryd.store.etcd.unwrap();
    assert_eq!((etcd.endpoints[0].as_str(), etcd.prefix.as_str()), ("https://10.0.0.1:2379", "/mesh"));
    assert_eq!(config.registryd.forget_after, Some(std::time::Duration::from_secs(72 * 3600)));
    assert!(parse("etcd: {endpoints: ['http://127.0.0.1:2379', 'http://[::1]:2379'], username: a, password_file: /p}").is_ok());
    for (store, key) in [
        ("export: /x", "registryd.store.kind"),
        ("etcd: {prefix: /mesh}", "registryd.store.etcd.endpoints"),
        ("etcd: {endpoints: ['10.0.0.1:2379']}", "registryd.store.etcd.endpoints"),
        ("etcd: {endpoints: ['https://10.0.0.1:2379']}", "registryd.store.etcd.ca_path"),
        (
            "etcd: {endpoints: ['https://10.0.0.1:2379', 'http://10.0.0.2:2379'], ca_path: /c}",
            "registryd.store.etcd.endpoints",
        ),
        (
            "etcd: {endpoints: ['http://10.0.0.1:2379'], username: a, password_file: /p}",
            "registryd.store.etcd.password_file",
        ),
        ("etcd: {endpoints: ['http://10.0.0.1:2379'], ca_path: /c}", "registryd.store.etcd.ca_path"),
        (
            "etcd: {endpoints: ['https://10.0.0.1:2379'], ca_path: /c, cert_path: /x}",
            "registryd.store.etcd.key_path",
        ),
        (
            "etcd: {endpoints: ['https://10.0.0.1:2379'], ca_path: /c, username: x}",
            "registryd.store.etcd.password_file",
        ),
        (
            "etcd: {endpoints: ['https://10.0.0.1:2379'], ca_path: /c, prefix: mesh/}",
            "registryd.store.etcd.prefix",
        ),
        ("etcd: {endpoints: ['https://10.0.0.1:2379'], ca_path: /c, user: x}", "registryd.store.etcd.user"),
    ] {
        let said = parse(store).err().unwrap_or_default();
        assert!(said.contains(key), "{store}: {said}");
    }
}

#[test]
fn the_table_of_keys_gives_the_defaults_that_count() {
    let shown = |config: &Config| {
        format!("{:?}{:?}{:?}{:?}", config.mesh, config.proxy, config.registryd, config.telemetry)
    };
    let least = |tls: &str, more: &str| format!("{{mesh: {{enabled: true, node_name: a, tls: {tls}{more}}}");
    let defaults = shown(&Config::parse(&(least("true", "") + "}")).unwrap());
    let mut compared = 0;
    for key in keys::KEYS {
        let keys::Preset::Is(value) = key.default else { continue };
        // The value, with the sections around it.
        let nested = |outermost: &str| {
            let mut steps: Vec<_> = key.steps().collect();
            steps.drain(..outermost.split('.').filter(|step| !step.is_empty()).count());
            steps.into_iter().rev().fold(value.to_owned(), |inner, step| format!("{{{step}: {inner}}}"))
        };
        let text = match key.path {
            "mesh.tls.ca_path" => least(&nested("mesh.tls"), "") + "}",
            // These count only beside others.
            path if ["[]", "discovery", "etcd", "otlp"].iter().any(|part| path.contains(part)) => continue,
            path if path.starts_with("mesh.") => {
                let inner = nested("mesh");
                least("true", &format!(", {}", &inner[1..inner.len() - 1])) + "}"
            }
            _ => {
                let inner = nested("");
                least("true", "") + ", " + &inner[1..]
            }
        };
        let config = Config::parse(&text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"));
        assert_eq!(shown(&config), defaults, "{text}");
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn a_collector_is_complete_and_gets_no_secret_in_the_clear() {
    let parse = |otlp: &str| {
        let text =
            format!("mesh: {{enabled: true, node_name: ct110, tls: true}}\ntelemetry: {{otlp: {{{otlp}}}}}");
        Config::parse(&text)
            .map(|config| config.telemetry.otlp.unwrap())
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    let least = parse("endpoint: 'http://127.0.0.1:4318'").unwrap();
    assert_eq!(least.endpoint.traces_url(), "http://127.0.0.1:4318/v1/traces");
    assert_eq!((least.sample_ratio, least.max_queue), (1.0, 2048));
    let below = parse("endpoint: 'http://[::1]:4318/otlp/', headers_file: /h, sample_ratio: 1").unwrap();
    assert_eq!(below.endpoint.traces_url(), "http://[::1]:4318/otlp/v1/traces");
    for (otlp, key) in [
        ("sample_ratio: 1", "telemetry.otlp: needs endpoint"),
        ("endpoint: '127.0.0.1:4318'", "telemetry.otlp.endpoint"),
        ("endpoint: 'grpc://127.0.0.1:4317'", "telemetry.otlp.endpoint"),
        ("endpoint: 'http://127.0.0.1'", "telemetry.otlp.endpoint"),
        ("endpoint: 'http://[127.0.0.1]:4318'", "telemetry.otlp.endpoint"),
        ("endpoint: 'http://user:password@127.0.0.1:4318'", "telemetry.otlp.endpoint"),
        ("endpoint: 'http://127.0.0.1:4318/?a=b'", "telemetry.otlp.endpoint"),
        ("endpoint: 'http://127.0.0.1:4318/v1/traces'", "without /v1/traces, which is added"),
        ("endpoint: 'https://127.0.0.1:4318'", "telemetry.otlp.ca_path"),
        ("endpoint: 'http://127.0.0.1:4318', ca_path: /c", "telemetry.otlp.ca_path"),
        ("endpoint: 'http://10.0.0.1:4318', headers_file: /h", "telemetry.otlp.headers_file"),
        ("endpoint: 'http://127.0.0.1:4318', sample_ratio: 1.1", "telemetry.otlp.sample_ratio"),
        ("endpoint: 'http://127.0.0.1:4318', timeout_ms: 1", "telemetry.otlp.timeout_ms"),
        ("endpoint: 'http://127.0.0.1:4318', headers: {a: b}", "telemetry.otlp.headers: unknown key"),
    ] {
        let said = parse(otlp).err().unwrap_or_default();
        assert!(said.contains(key), "{otlp}: {said}");
    }
}
