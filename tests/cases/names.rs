//! Names: registryd as a DNS server, behind dnsmasq, in a hosts file; nodes that find each other by mDNS.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use mesh_tests::eventually;
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::network::{Network, SYSTEM_PATH};
use mesh_tests::process::{self, Daemon, run, succeed, text};
use serde_json::json;

/// Not 53, which needs rights; the same on every address.
const DNS_PORT: u16 = 5399;

/// What dig prints for a question: with `+short` the answers, else everything.
fn dig(server: SocketAddr, question: &[&str]) -> String {
    let (ip, port) = (format!("@{}", server.ip()), server.port().to_string());
    text(&run(Command::new("dig").args([&ip, "-p", &port, "+time=5", "+tries=2"]).args(question)).stdout)
}

fn short(server: SocketAddr, question: &[&str]) -> String {
    dig(server, &[question, &["+short"]].concat()).trim().into()
}

/// A node whose registryd answers DNS, in a mesh with two nodes that nobody speaks for.
async fn dns_node(mesh: &Mesh) -> (Node, SocketAddr) {
    mesh.register("ct111", "10.0.0.111", 3011, &["grok", "scout"]);
    mesh.register("ct112", "fd00::112", 3000, &[]);
    let plan = mesh.node("ct110").agent("opus");
    let listen = SocketAddr::new(plan.ip(), DNS_PORT);
    let plan = plan.with(|config| config["registryd"]["dns"]["listen"] = json!(listen.to_string()));
    (plan.start().await, listen)
}

#[tokio::test]
async fn dig_gets_every_record_type_from_the_live_registry() {
    let mesh = Mesh::new();
    let (node, dns) = dns_node(&mesh).await;
    assert_eq!(short(dns, &["ct110.mesh", "A"]), node.ip().to_string());
    assert_eq!(short(dns, &["CT111.mesh", "A"]), "10.0.0.111");
    assert_eq!(short(dns, &["ct112.mesh", "AAAA"]), "fd00::112");
    assert_eq!(short(dns, &["ct111.mesh", "SRV"]), "0 0 3011 ct111.mesh.");
    assert_eq!(short(dns, &["_mesh._tcp.ct111.mesh", "SRV"]), "0 0 3011 ct111.mesh.");
    assert_eq!(short(dns, &["ct111.mesh", "TXT"]), r#""agent=grok" "agent=scout""#);
    assert_eq!(short(dns, &["mesh", "NS"]), "ct110.mesh.");
    assert!(short(dns, &["mesh", "SOA"]).starts_with("ct110.mesh. hostmaster.mesh. "));
    assert_eq!(short(dns, &["-x", "10.0.0.111"]), "ct111.mesh.");
    assert_eq!(short(dns, &["-x", "fd00::112"]), "ct112.mesh.");
    assert_eq!(short(dns, &["ct111.mesh", "A", "+tcp"]), "10.0.0.111");

    // By agent: who is online and hosts it.
    assert_eq!(short(dns, &["grok.agent.mesh", "A"]), "10.0.0.111");
    assert_eq!(short(dns, &["opus.agent.mesh", "A"]), node.ip().to_string());
    assert_eq!(short(dns, &["scout.agent.mesh", "SRV"]), "0 0 3011 ct111.mesh.");
    assert!(dig(dns, &["nobody.agent.mesh", "A"]).contains("status: NXDOMAIN"));

    // What changes in the registry changes here.
    mesh.amend("ct111", |entry| entry["host"] = json!("10.0.0.211"));
    eventually("the new address is answered", async || {
        (short(dns, &["ct111.mesh", "A"]) == "10.0.0.211").then_some(())
    })
    .await;
}

#[tokio::test]
async fn dig_gets_the_code_that_says_what_is_wrong() {
    let mesh = Mesh::new();
    let (_node, dns) = dns_node(&mesh).await;
    for (question, status, soa) in [
        (&["ct999.mesh", "A"][..], "NXDOMAIN", true),
        (&["ct111.mesh", "AAAA"], "NOERROR", true),
        (&["ct111.mesh", "MX"], "NOERROR", true),
        (&["_tcp.ct111.mesh", "A"], "NOERROR", true),
        (&["example.org", "A"], "REFUSED", false),
        (&["-x", "10.9.9.9"], "REFUSED", false),
        (&["mesh", "AXFR", "+noall", "+comments", "+answer"], "Transfer failed", false),
        (&["version.bind", "CH", "TXT"], "REFUSED", false),
        (&["ct111.mesh", "A", "+opcode=notify"], "NOTIMP", false),
        (&["ct111.mesh", "A", "+edns=1", "+noednsnegotiation"], "BADVERS", false),
    ] {
        let answer = dig(dns, question);
        assert!(answer.contains(status), "{question:?}: expected {status} in {answer}");
        assert_eq!(answer.contains("hostmaster.mesh."), soa, "{question:?}: {answer}");
    }
}

#[tokio::test]
async fn an_answer_too_large_for_udp_comes_over_tcp() {
    let mesh = Mesh::new();
    let (_node, dns) = dns_node(&mesh).await;
    let agents: Vec<String> = (0..100).map(|i| format!("agent-number-{i}")).collect();
    mesh.amend("ct111", |entry| entry["agents"] = json!(agents));
    eventually("all agents are listed", async || {
        short(dns, &["ct111.mesh", "TXT"]).contains("agent=agent-number-99").then_some(())
    })
    .await;
    assert!(dig(dns, &["ct111.mesh", "TXT", "+ignore"]).contains("flags: qr aa tc"));
    assert!(dig(dns, &["ct111.mesh", "TXT", "+ignore", "+noedns"]).contains("flags: qr aa tc"));
}

#[tokio::test]
async fn without_a_registry_it_is_servfail_never_nxdomain() {
    let mesh = Mesh::new();
    fs::write(mesh.registry_path(), "{ not json").unwrap();
    let plan = mesh.node("ct110");
    let listen = SocketAddr::new(plan.ip(), DNS_PORT);
    let mut node =
        plan.with(|config| config["registryd"]["dns"]["listen"] = json!(listen.to_string())).prepare().await;
    node.registryd = Some(Daemon::start("registryd", &mut node.command("registryd")));
    node.registryd().wait_log(&["[DNS]", "answering for .mesh"]).await;
    let answer = dig(listen, &["ct111.mesh", "A"]);
    assert!(answer.contains("SERVFAIL"), "{answer}");
}

#[tokio::test]
async fn who_is_not_met_yet_is_not_said_not_to_exist() {
    let mesh = Mesh::new();
    let (seed, seed_address) = (mesh.node("ct111").own_storage(), Loopback::take());
    let plan = mesh.node("ct110").own_storage();
    let listen = SocketAddr::new(plan.ip(), DNS_PORT);
    let host = seed.ip().to_string();
    let mut node = plan
        .with(|config| {
            config["registryd"]["dns"]["listen"] = json!(listen.to_string());
            config["mesh"]["discovery"] =
                json!({"mode": "seed", "seed_host": "ct111.mesh", "seed_port": 3000});
            // Where the seed is, without any DNS.
            config["mesh"]["peers"] =
                json!([{"name": "ct111", "host": host}, {"name": "ct112", "host": seed_address.ip().to_string()}]);
        })
        .prepare()
        .await;
    node.start_registryd().await;
    node.start_proxy().await;
    for name in ["ct111.mesh", "ct112.mesh", "ct999.mesh", "_mesh._tcp.ct112.mesh"] {
        let answer = dig(listen, &[name, "SRV"]);
        assert!(answer.contains("SERVFAIL"), "{name}: {answer}");
    }
    let seed = seed.start().await;
    eventually("the seed is met", async || {
        (short(listen, &["ct111.mesh", "A"]) == seed.ip().to_string()).then_some(())
    })
    .await;
    // Now the mesh is known; only the other one that the configuration names is still to come.
    assert!(dig(listen, &["ct999.mesh", "A"]).contains("NXDOMAIN"));
    assert!(dig(listen, &["ct112.mesh", "A"]).contains("SERVFAIL"));
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_key_and_address() {
    let mesh = Mesh::new();
    let (node, dns) = dns_node(&mesh).await;
    let second =
        mesh.node("ct113").with(|config| config["registryd"]["dns"]["listen"] = json!(dns.to_string()));
    let mut second = second.prepare().await;
    second.registryd = Some(Daemon::start("registryd", &mut second.command("registryd")));
    let line = second.registryd().wait_log(&["ERROR", "registryd.dns.listen"]).await;
    assert!(line.contains(&dns.to_string()) && line.contains("name another address or port"), "{line}");
    assert!(!second.registryd().exited().await.success());
    drop(node);
}

/// dnsmasq with the snippet of `deploy/dns`, asked by dig and by another node's registryd.
#[tokio::test]
async fn dnsmasq_forwards_the_zone_with_the_deployed_snippet() {
    let mesh = Mesh::new();
    let (node, dns) = dns_node(&mesh).await;
    let address = Loopback::take();
    let front = address.port(DNS_PORT);
    let snippet = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dns/dnsmasq.conf"));
    let snippet = fs::read_to_string(snippet).unwrap();
    let here = snippet.replace("127.0.0.1#5353", &format!("{}#{}", dns.ip(), dns.port()));
    assert_ne!(here, snippet);
    let file = mesh.folder().join("dnsmasq.conf");
    fs::write(&file, format!("{here}\nno-resolv\nno-hosts\nstop-dns-rebind\nbind-interfaces\n")).unwrap();
    let mut dnsmasq = Command::new("dnsmasq");
    dnsmasq
        .env("PATH", SYSTEM_PATH)
        .args(["--keep-in-foreground", "--log-facility=-", "--user=", "--pid-file="])
        .arg(format!("--conf-file={}", file.display()))
        .arg(format!("--listen-address={}", front.ip()))
        .arg(format!("--port={}", front.port()));
    let dnsmasq = Daemon::start("dnsmasq", &mut dnsmasq);
    eventually("dnsmasq answers", async || {
        (short(front, &["ct111.mesh", "A"]) == "10.0.0.111").then_some(())
    })
    .await;
    assert_eq!(short(front, &["ct111.mesh", "SRV"]), "0 0 3011 ct111.mesh.");
    assert!(dig(front, &["ct999.mesh", "A"]).contains("NXDOMAIN"));

    // A node that asks this dnsmasq reaches ct110 by name, although the registry has a wrong host for it.
    let two = mesh
        .node("ct113")
        .with(|config| config["registryd"]["dns"]["upstream"] = json!([front.to_string()]))
        .start()
        .await;
    two.reaches("ct110").await;
    drop((node, dnsmasq));
}

/// systemd-resolved with the snippet of `deploy/dns` as it is.
#[tokio::test]
async fn systemd_resolved_asks_registryd_with_the_deployed_snippet() {
    let Some(network) = Network::halves(1).await else { return };
    let mesh = Mesh::new();
    mesh.register("ct111", "10.0.0.111", 3011, &["grok"]);
    let plan =
        mesh.node("ct110").with(|config| config["registryd"]["dns"] = json!({"listen": "127.0.0.1:5353"}));
    let mut node = plan.prepare().await;
    let mut command = process::command("registryd");
    command.arg("--config").arg(&node.config_path);
    node.registryd = Some(Daemon::start("registryd", &mut network.inside(0, &command)));
    let snippet = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dns/systemd-resolved.conf"));
    let folder = mesh.folder().join("resolved");
    fs::create_dir(&folder).unwrap();
    let Some(resolved) = mesh_tests::resolved::start(&network, 0, &snippet, &folder) else { return };
    let ask = |question: &[&str]| {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.53", "+time=5", "+tries=1"]).args(question);
        text(&run(&mut network.inside(0, &dig)).stdout)
    };
    eventually("systemd-resolved answers", async || {
        ask(&["ct111.mesh", "A"]).contains("10.0.0.111").then_some(())
    })
    .await;
    assert!(ask(&["ct111.mesh", "SRV", "+short"]).contains("0 0 3011 ct111.mesh."));
    assert!(ask(&["ct999.mesh", "A"]).contains("NXDOMAIN"));
    // Without another server, what is not of the mesh fails; it is never said not to exist.
    let other = ask(&["example.org", "A"]);
    assert!(!other.contains("NXDOMAIN") && !other.contains("NOERROR"), "{other}");
    drop((resolved, node));
}

#[tokio::test]
async fn meshctl_keeps_a_block_in_a_hosts_file() {
    let mesh = Mesh::new();
    let (node, _dns) = dns_node(&mesh).await;
    let block = succeed(node.command("meshctl").arg("hosts"));
    let expected = format!(
        "# mesh begin\n{}\tct110.mesh\n10.0.0.111\tct111.mesh\nfd00::112\tct112.mesh\n# mesh end\n",
        node.ip()
    );
    assert_eq!(block, expected);
    let file = mesh.folder().join("hosts");
    fs::write(&file, "127.0.0.1 localhost\r\n# mesh begin\nold\n# mesh end\n\n# last").unwrap();
    for _ in 0..2 {
        succeed(node.command("meshctl").arg("hosts").arg("--write").arg(&file));
        let content = fs::read_to_string(&file).unwrap();
        assert_eq!(content, format!("127.0.0.1 localhost\r\n{expected}\n# last"));
    }

    // In a container the file is a mount of its own: nothing can be renamed over it.
    fs::write(&file, "127.0.0.1 localhost\n# mesh begin\nolder and longer than the new one\n# mesh end\n")
        .unwrap();
    let script = r#"mount --bind "$0" "$0" && ! mv "$0" "$0.moved" && exec "$@" "$0""#;
    let meshctl = node.command("meshctl");
    let mut contained = Command::new("unshare");
    contained.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(&file);
    contained.arg(meshctl.get_program()).args(["hosts", "--write"]);
    contained.envs(meshctl.get_envs().filter_map(|(key, value)| Some((key, value?))));
    succeed(&mut contained);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("127.0.0.1 localhost\n{expected}"));

    fs::write(&file, "# mesh begin\nkeep me\n").unwrap();
    let refused = run(node.command("meshctl").arg("hosts").arg("--write").arg(&file));
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("without its partner"), "{}", text(&refused.stderr));
    assert_eq!(fs::read_to_string(&file).unwrap(), "# mesh begin\nkeep me\n");
}

#[tokio::test]
async fn two_nodes_on_one_network_find_each_other_by_mdns() {
    let Some(network) = Network::halves(1).await else { return };
    let mesh = Mesh::new();
    let mut nodes = Vec::new();
    for (side, (name, agent)) in [("ct110", "opus"), ("ct111", "grok")].into_iter().enumerate() {
        let plan = mesh.node(name).own_storage().with(|config| {
            config["mesh"]["discovery"] = json!({"mode": "mdns"});
            config["mesh"].as_object_mut().unwrap().remove("advertise_host");
            config["proxy"]["inbound"]["address"] = json!("0.0.0.0");
            config["registryd"]["agents"] = json!([agent]);
            // The DNS server shares the mDNS port, as in the example configuration.
            config["registryd"]["dns"] = json!({"listen": "127.0.0.1:5353"});
        });
        let mut node = plan.prepare().await;
        for (binary, place) in [("registryd", &mut node.registryd), ("mesh-proxy", &mut node.proxy)] {
            let mut command = process::command(binary);
            command.arg("--config").arg(&node.config_path);
            *place = Some(Daemon::start(binary, &mut network.inside(side, &command)));
        }
        nodes.push(node);
    }
    let in_registry = |node: &Node, other: &str| {
        let path = node.folder().join("storage/mesh.json");
        let registry: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        registry["nodes"].as_object()?.values().find(|entry| entry["name"] == other).cloned()
    };
    for (side, other, agent) in [(0, "ct111", "grok"), (1, "ct110", "opus")] {
        eventually(&format!("{other} is found by mDNS"), async || {
            let entry = in_registry(&nodes[side], other)?;
            // Degraded: no agent runs here.
            (entry["status"] != "offline" && entry["agents"] == json!([agent])).then_some(())
        })
        .await;
        let url = format!("http://{}/nodes/{other}/api/mesh/ping", nodes[side].outbound());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "5", &url]);
        eventually(&format!("{other} answers"), async || {
            let answer = text(&run(&mut network.inside(side, &curl)).stdout);
            answer.contains(&format!("\"node\":\"{other}\"")).then_some(())
        })
        .await;
    }
    // A goodbye marks the leaver, whose sidecar has stopped too.
    nodes[1].proxy().stop().await;
    assert!(nodes[1].registryd().stop().await.success());
    eventually("the leaver is offline", async || {
        (in_registry(&nodes[0], "ct111")?["status"] == "offline").then_some(())
    })
    .await;
}

#[tokio::test]
async fn idle_connections_to_the_dns_server_keep_nobody_out() {
    let mesh = Mesh::new();
    let (node, dns) = dns_node(&mesh).await;
    let mut idle = Vec::new();
    for _ in 0..190 {
        idle.push(tokio::net::TcpStream::connect(dns).await.unwrap());
    }
    let started = std::time::Instant::now();
    assert_eq!(short(dns, &["ct111.mesh", "A", "+tcp"]), "10.0.0.111");
    assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
    drop((idle, node));
}
