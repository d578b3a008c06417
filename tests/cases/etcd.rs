//! The registry in a real etcd cluster of three.

use std::time::Duration;

use http::Method;
use mesh_tests::ca::Spec;
use mesh_tests::etcd::{Cluster, Tls};
use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node, Plan};
use mesh_tests::process::{self, Daemon};
use mesh_tests::web;
use mesh_tests::{eventually, eventually_within};
use serde_json::{Value, json};

/// A node whose registry is in the cluster.
fn node(mesh: &Mesh, cluster: &Cluster, name: &str) -> Plan {
    let store = cluster.store();
    mesh.node(name).agent(&format!("agent-{name}")).with(|config| {
        config["registryd"]["store"] = store;
        config["mesh"]["stale_threshold_ms"] = json!(6000);
    })
}

async fn status_of(node: &Node, other: &str) -> Option<String> {
    let nodes = node.local(&format!("/mesh/nodes?node={other}")).await?.json();
    Some(nodes[0]["status"].as_str()?.to_owned())
}

async fn sees(node: &Node, other: &str, status: &str) {
    eventually_within(
        Duration::from_secs(30),
        &format!("{} sees {other} as {status}", node.name),
        async || (status_of(node, other).await? == status).then_some(()),
    )
    .await;
}

async fn problems(node: &Node) -> Vec<String> {
    let status = node.local("/v1/status").await.unwrap().json();
    let problems = status["problems"].as_array().unwrap().iter();
    problems.map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

/// Whether a node was ever told to be offline, by its log.
fn never_called_offline(node: &Node, other: &str) {
    let log = node.registryd.as_ref().unwrap();
    let told = log.lines_with(&[&format!("node {other} fell silent")]);
    assert!(told.is_empty(), "{told:?}");
}

/// A join as a RivetOS node sends it, through a node's sidecar.
async fn join(node: &Node, name: &str, more: Value) -> web::Answer {
    let mut body = json!({"id": format!("id_{name}"), "name": name, "host": "10.1.2.3", "port": 3000,
        "agents": ["scout"], "rivet": {"n": 1}});
    more.as_object().into_iter().flatten().for_each(|(key, value)| body[key] = value.clone());
    let request = web::request(Method::POST, "/api/mesh/join")
        .header("x-mesh-peer-cn", name)
        .header("content-type", "application/json")
        .body(web::full(body.to_string()))
        .unwrap();
    web::on_socket(&node.socket(), request).await.unwrap()
}

#[tokio::test]
async fn nodes_register_leave_and_are_forgotten() {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let (one, mut two) =
        tokio::join!(node(&mesh, &cluster, "ct110").start(), node(&mesh, &cluster, "ct111").start());
    sees(&one, "ct111", "online").await;
    sees(&two, "ct110", "online").await;
    one.reaches("ct111").await;
    let entry = cluster.entry("ct111").unwrap();
    assert_eq!((&entry["name"], &entry["agents"]), (&json!("ct111"), &json!(["agent-ct111"])));
    assert_eq!(cluster.alive("ct111").as_deref(), Some("ct111"));
    // A heartbeat writes nothing.
    let before = cluster.revision();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.revision(), before);
    let metrics = one.local("/metrics").await.unwrap().text();
    let gauge = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split_once(' ').unwrap().1.parse().unwrap()
    };
    let (age, left) = (gauge("mesh_lease_age_seconds"), gauge("mesh_lease_ttl_seconds"));
    assert!(age + left > 5.5 && age + left < 7.0, "{age} {left}");
    // Fields of others are kept.
    let mut foreign = entry.clone();
    foreign["note"] = json!({"by": "hand"});
    cluster.ctl(&["put", "/mesh/nodes/ct111", &foreign.to_string()]);
    let set = two.command("meshctl").args(["status", "set", "updating"]).output().unwrap();
    assert!(set.status.success(), "{}", process::text(&set.stderr));
    sees(&one, "ct111", "updating").await;
    assert_eq!(cluster.entry("ct111").unwrap()["note"], json!({"by": "hand"}));
    // A goodbye.
    assert!(two.proxy().stop().await.success());
    assert!(two.registryd().stop().await.success());
    sees(&one, "ct111", "offline").await;
    assert_eq!(cluster.alive("ct111"), None);
    let forgotten = process::run(one.command("meshctl").args(["nodes", "forget", "ct111"]));
    assert!(forgotten.status.success(), "{}", process::text(&forgotten.stderr));
    assert_eq!(cluster.entry("ct111"), None);
    eventually("ct110 does not know it", async || status_of(&one, "ct111").await.is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn a_killed_registryd_is_noticed_by_the_end_of_its_lease() {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let (mut one, mut two) =
        (node(&mesh, &cluster, "ct110").prepare().await, node(&mesh, &cluster, "ct111").prepare().await);
    tokio::join!(one.start_registryd(), two.start_registryd());
    sees(&one, "ct111", "online").await;
    two.registryd().kill();
    sees(&one, "ct111", "offline").await;
    one.registryd().wait_log(&["WARN", "node ct111 fell silent"]).await;
    two.start_registryd().await;
    sees(&one, "ct111", "online").await;
}

#[tokio::test]
async fn a_lost_member_is_not_noticed_and_a_lost_cluster_stops_nothing() {
    let mesh = Mesh::new();
    let mut cluster = Cluster::start(mesh.folder()).await;
    let (mut one, two) =
        tokio::join!(node(&mesh, &cluster, "ct110").start(), node(&mesh, &cluster, "ct111").start());
    sees(&one, "ct111", "online").await;
    sees(&two, "ct110", "online").await;
    for i in 0..3 {
        cluster.kill_member(i);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((problems(&one).await, problems(&two).await), (vec![], vec![]), "member {i} is away");
        cluster.start_member(i);
        cluster.serves().await;
    }
    cluster.kill_all();
    for node in [&one, &two] {
        eventually_within(Duration::from_secs(30), "the outage is told", async || {
            (!problems(node).await.is_empty()).then_some(())
        })
        .await;
    }
    // Longer than any lease.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        one.reaches("ct111").await;
        let told = problems(&one).await;
        assert!(told.len() == 1 && told[0].starts_with("no member of etcd serves at"), "{told:?}");
        assert_eq!(status_of(&one, "ct111").await.as_deref(), Some("online"));
    }
    // One that starts meanwhile does so, and says what is wrong.
    let mut three = node(&mesh, &cluster, "ct112").prepare().await;
    three.start_registryd().await;
    three.start_proxy().await;
    three.registryd().wait_log(&["WARN", "no member of etcd serves at"]).await;
    cluster.start_all();
    cluster.serves().await;
    for node in [&one, &two, &three] {
        eventually_within(Duration::from_secs(30), "the problem is over", async || {
            problems(node).await.is_empty().then_some(())
        })
        .await;
    }
    for (node, others) in
        [(&one, ["ct111", "ct112"]), (&two, ["ct110", "ct112"]), (&three, ["ct110", "ct111"])]
    {
        for other in others {
            sees(node, other, "online").await;
        }
    }
    three.reaches("ct110").await;
    never_called_offline(&one, "ct111");
    never_called_offline(&two, "ct110");
    one.registryd().wait_log(&["INFO", "resolved: no member of etcd serves at"]).await;
    // A lease that ran out is taken anew.
    let text = cluster.ctl(&["get", "/mesh/alive/ct111", "-w", "json"]);
    let lease = serde_json::from_str::<Value>(&text).unwrap()["kvs"][0]["lease"].as_i64().unwrap();
    cluster.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    sees(&one, "ct111", "online").await;
    eventually("the lease is taken anew", async || cluster.alive("ct111").map(drop)).await;
}

#[tokio::test]
async fn nodes_that_join_are_seen_everywhere_for_as_long_as_they_join() {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let (mut one, mut two) =
        (node(&mesh, &cluster, "ct110").prepare().await, node(&mesh, &cluster, "ct111").prepare().await);
    tokio::join!(one.start_registryd(), two.start_registryd());
    let answer = join(&one, "rivet1", json!({})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    sees(&two, "rivet1", "online").await;
    let entry = cluster.entry("rivet1").unwrap();
    assert_eq!((&entry["id"], &entry["rivet"]), (&json!("id_rivet1"), &json!({"n": 1})));
    assert_eq!(cluster.alive("rivet1").as_deref(), Some("ct110"));
    // Through one node and another, for longer than a lease lasts.
    for i in 0..8 {
        let by = if i % 2 == 0 { &two } else { &one };
        assert_eq!(join(by, "rivet1", json!({"lastSeen": mesh_tests::mesh::epoch_ms()})).await.status, 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    never_called_offline(&one, "rivet1");
    never_called_offline(&two, "rivet1");
    // What RivetOS reads: a stamp that moves.
    let nodes = two.local("/api/mesh").await.unwrap().json();
    let shown = nodes.as_array().unwrap().iter().find(|node| node["name"] == "ct110").unwrap().clone();
    let age = mesh_tests::mesh::epoch_ms().saturating_sub(shown["lastSeen"].as_u64().unwrap());
    assert!(age < 6000, "{age} ms");
    // It falls silent; both say so, and its lease is over.
    sees(&one, "rivet1", "offline").await;
    sees(&two, "rivet1", "offline").await;
    assert_eq!(cluster.alive("rivet1"), None);
    // It comes back, and says goodbye.
    assert_eq!(join(&two, "rivet1", json!({})).await.status, 200);
    sees(&one, "rivet1", "online").await;
    assert_eq!(join(&two, "rivet1", json!({"status": "offline"})).await.status, 200);
    one.registryd().wait_log(&["INFO", "node rivet1 left"]).await;
}

#[tokio::test]
async fn two_hosts_with_one_name_are_told_with_both_addresses() {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let plan = node(&mesh, &cluster, "ct111");
    let tls = plan.config["mesh"]["tls"].clone();
    let clone = node(&mesh, &cluster, "ct191").with(|config| {
        config["mesh"]["node_name"] = json!("ct111");
        config["mesh"]["tls"] = tls;
    });
    let mut third = node(&mesh, &cluster, "ct110").prepare().await;
    let (mut one, mut two) = (plan.prepare().await, clone.prepare().await);
    third.start_registryd().await;
    one.start_registryd().await;
    two.start_registryd().await;
    for node in [&one, &two, &third] {
        eventually_within(Duration::from_secs(20), "the two are told", async || {
            let told = problems(node).await.join(" ");
            let both = [&one, &two].iter().all(|node| told.contains(&node.ip().to_string()));
            (told.contains("two hosts call themselves ct111") && both).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_compacted_meanwhile_is_read_anew_and_told() {
    let mesh = Mesh::new();
    let mut cluster = Cluster::start(mesh.folder()).await;
    let (mut one, _two) =
        tokio::join!(node(&mesh, &cluster, "ct110").start(), node(&mesh, &cluster, "ct111").start());
    sees(&one, "ct111", "online").await;
    let request = web::request(Method::GET, "/mesh/events").body(web::empty()).unwrap();
    let mut events = web::open(one.outbound(), request).await.unwrap().into_body();
    // The watcher sees nothing for a while.
    one.registryd().freeze().await;
    let entry = cluster.entry("ct111").unwrap();
    for i in 0..20 {
        let mut changed = entry.clone();
        changed["note"] = json!(i);
        cluster.ctl(&["put", "/mesh/nodes/ct111", &changed.to_string()]);
    }
    let revision = cluster.revision();
    cluster.ctl(&["compact", &revision.to_string()]);
    cluster.kill_all();
    one.registryd().signal(libc::SIGCONT);
    cluster.start_all();
    cluster.serves().await;
    let mut text = String::new();
    while !text.contains("event: missed") {
        text.push_str(&process::text(&web::next_data(&mut events).await.expect("the stream goes on")));
    }
    sees(&one, "ct111", "online").await;
}

#[tokio::test]
async fn a_copy_is_kept_for_programs_that_only_read() {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let path = mesh.folder().join("export.json");
    let exporting = path.clone();
    let mut one = node(&mesh, &cluster, "ct110")
        .with(|config| config["registryd"]["store"]["export"] = json!(exporting))
        .prepare()
        .await;
    one.start_registryd().await;
    let mut two = node(&mesh, &cluster, "ct111").prepare().await;
    two.start_registryd().await;
    let entry = async |node: &str| {
        let content = std::fs::read(&path).ok()?;
        let registry: Value = serde_json::from_slice(&content).unwrap();
        registry["nodes"].as_object().unwrap().values().find(|entry| entry["name"] == node).cloned()
    };
    let first = eventually("both are in it", async || {
        entry("ct110").await?;
        entry("ct111").await.filter(|entry| entry["status"] == "online")
    })
    .await;
    eventually("the stamp moves", async || {
        (entry("ct111").await?["lastSeen"].as_u64() > first["lastSeen"].as_u64()).then_some(())
    })
    .await;
    two.registryd().kill();
    eventually_within(Duration::from_secs(30), "it is offline there", async || {
        (entry("ct111").await?["status"] == "offline").then_some(())
    })
    .await;
}

/// The commands of a block in the documentation.
fn documented(block: &str) -> String {
    let text = include_str!("../../deploy/docs/etcd.md");
    let start = format!("```sh {block}\n");
    let (_, rest) = text.split_once(&start).unwrap_or_else(|| panic!("etcd.md has no block {block}"));
    rest.split_once("```").unwrap().0.to_owned()
}

#[tokio::test]
async fn a_nodes_credentials_write_its_own_entry_and_no_other() {
    let mesh = Mesh::new();
    let folder = mesh.folder().join("operator");
    std::fs::create_dir(&folder).unwrap();
    let addresses: Vec<Loopback> = (0..3).map(|_| Loopback::take()).collect();
    let ips = addresses.iter().map(Loopback::ip).collect();
    let issued = mesh.ca.issue(&Spec { ips, ..Spec::node("etcd") });
    let tls =
        Tls { ca: mesh.bundle_path(), certificate: folder.join("etcd.crt"), key: folder.join("etcd.key") };
    std::fs::write(&tls.certificate, issued.chain_pem).unwrap();
    std::fs::write(&tls.key, issued.key_pem).unwrap();
    let cluster = Cluster::start_at(mesh.folder(), addresses, Some(tls.clone())).await;
    for user in ["ct110", "ct111", "root"] {
        std::fs::write(folder.join(format!("{user}.password")), format!("secret-of-{user}\n")).unwrap();
    }
    let run = |block: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-e", "-c", &documented(block)]).current_dir(&folder);
        shell.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", cluster.urls().join(","));
        process::run(shell.env("ETCDCTL_CACERT", &tls.ca))
    };
    let set_up = run("operator");
    assert!(set_up.status.success(), "{}", process::text(&set_up.stderr));
    let with_user = |name: &str| {
        let (user, password) = (name.to_owned(), folder.join(format!("{name}.password")));
        node(&mesh, &cluster, name).with(|config| {
            config["registryd"]["store"]["etcd"]["username"] = json!(user);
            config["registryd"]["store"]["etcd"]["password_file"] = json!(password);
        })
    };
    let (mut one, mut two) = (with_user("ct110").prepare().await, with_user("ct111").prepare().await);
    tokio::join!(one.start_registryd(), two.start_registryd());
    sees(&one, "ct111", "online").await;
    sees(&two, "ct110", "online").await;
    let refused = run("refused");
    let said = process::text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("permission denied"), "{said}");
    // A join that this node may not write, until it may.
    let answer = join(&one, "rivet1", json!({})).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.text().contains("/mesh/nodes/rivet1"), "{}", answer.text());
    let granted = run("joined");
    assert!(granted.status.success(), "{}", process::text(&granted.stderr));
    assert_eq!(join(&one, "rivet1", json!({})).await.status, 200);
    sees(&two, "rivet1", "online").await;
    // One that is gone is forgotten by the node that may.
    assert!(two.registryd().stop().await.success());
    sees(&one, "ct111", "offline").await;
    let forget = || process::run(one.command("meshctl").args(["nodes", "forget", "ct111"]));
    let refused = forget();
    assert!(
        process::text(&refused.stderr).contains("/mesh/nodes/ct111"),
        "{}",
        process::text(&refused.stderr)
    );
    assert!(run("janitor").status.success());
    assert!(forget().status.success());
    // A wrong password, and one that would go over the network in the clear.
    std::fs::write(folder.join("ct111.password"), "wrong").unwrap();
    two.start_registryd().await;
    two.registryd().wait_log(&["WARN", "no member of etcd serves at", "authentication failed"]).await;
}

/// Changes where a node keeps its registry, and restarts its registryd.
async fn switch(node: &mut Node, kind: &str) {
    let mut config = mesh_tests::mesh::read_json(&node.config_path);
    config["registryd"]["store"]["kind"] = json!(kind);
    std::fs::write(&node.config_path, config.to_string()).unwrap();
    assert!(node.registryd().stop().await.success());
    let log = node.registryd.take().unwrap();
    let offline: Vec<_> =
        [log.lines_with(&["fell silent"]), log.lines_with(&["left", "status=offline"])].concat();
    assert!(offline.is_empty(), "{offline:?}");
    node.start_registryd().await;
}

#[tokio::test]
async fn a_mesh_moves_from_its_file_to_etcd_and_back_with_every_node_online() {
    let mesh = Mesh::new();
    let cluster = Cluster::start(mesh.folder()).await;
    let mut nodes = Vec::new();
    for name in ["ct110", "ct111", "ct112"] {
        let plan = node(&mesh, &cluster, name).with(|config| {
            config["registryd"]["store"]["kind"] = json!("file");
            config["mesh"]["stale_threshold_ms"] = json!(10_000);
        });
        nodes.push(plan.start().await);
    }
    mesh.edit_registry(|registry| {
        let mut gone = mesh_tests::mesh::entry("ct119", "127.1.2.3", 3000, &["scout"]);
        (gone["status"], gone["note"]) = (json!("offline"), json!("kept"));
        registry["nodes"]["id-ct119"] = gone;
    });
    let all_online = async |nodes: &[Node]| {
        for one in nodes {
            for other in nodes {
                sees(one, &other.name, "online").await;
            }
        }
    };
    all_online(&nodes).await;
    for to in ["etcd", "file"] {
        let mut command = nodes[0].command("meshctl");
        let mut bridge = Daemon::start("the bridge", command.args(["store", "migrate", "--to", to]));
        bridge.wait_log(&["0 of 3 nodes have moved"]).await;
        for i in 0..nodes.len() {
            switch(&mut nodes[i], to).await;
            all_online(&nodes).await;
            // Longer than any lease or threshold.
            tokio::time::sleep(Duration::from_secs(12)).await;
            all_online(&nodes).await;
        }
        assert!(bridge.exited().await.success());
        bridge.wait_log(&["all 3 nodes have moved"]).await;
        assert_eq!(cluster.entry("ct119").unwrap()["note"], "kept");
    }
    for node in &nodes {
        let log = node.registryd.as_ref().unwrap();
        assert!(log.lines_with(&["fell silent"]).is_empty());
    }
}
