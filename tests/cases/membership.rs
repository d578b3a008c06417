//! registryd and mesh.json: registration, heartbeats, staleness, goodbye, and what it never does to the file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use http::Method;
use mesh_tests::mesh::{Mesh, Node, entry, epoch_ms};
use mesh_tests::process::{Daemon, succeed};
use mesh_tests::{eventually, web};
use serde_json::{Value, json};

/// A node of which only registryd runs.
async fn registryd(mesh: &Mesh, name: &str) -> Node {
    let mut node =
        mesh.node(name).with(|config| config["registryd"]["agents"] = json!(["opus"])).prepare().await;
    node.start_registryd().await;
    node
}

async fn registered(mesh: &Mesh, name: &str) -> Value {
    eventually(&format!("{name} is online in mesh.json"), async || {
        mesh.entry(name).filter(|entry| entry["status"] == "online")
    })
    .await
}

#[tokio::test]
async fn a_node_registers_itself_with_everything_it_is() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").with(|config| {
        config["registryd"]["agents"] =
            json!(["opus", {"name": "grok", "provider": "xai", "model": "grok-4"}]);
        config["registryd"]["capabilities"] = json!(["gpu"]);
        config["registryd"]["metadata"] = json!({"rack": 3});
    });
    let mut node = plan.prepare().await;
    node.start_registryd().await;
    let entry = registered(&mesh, "ct110").await;
    assert_eq!(entry["agents"], json!(["opus", "grok"]));
    assert_eq!((&entry["providers"], &entry["models"]), (&json!(["xai"]), &json!(["grok-4"])));
    assert_eq!((&entry["capabilities"], &entry["metadata"]["rack"]), (&json!(["gpu"]), &json!(3)));
    assert_eq!((&entry["host"], &entry["port"]), (&json!(node.ip().to_string()), &json!(3000)));
    let registry = mesh.registry();
    assert_eq!(registry["version"], 1);
    assert!(registry["updatedAt"].as_u64() > Some(1 << 40));
    assert_eq!(registry["nodes"][entry["id"].as_str().unwrap()], entry, "the id is the key of the entry");
}

#[tokio::test]
async fn the_id_is_kept_across_restarts_and_kills() {
    let mesh = Mesh::new();
    let mut node = registryd(&mesh, "ct110").await;
    let first = registered(&mesh, "ct110").await;
    for kill in [false, true] {
        match kill {
            true => node.registryd().kill(),
            false => assert!(node.registryd().stop().await.success()),
        }
        let seen = mesh.entry("ct110").unwrap()["lastSeen"].as_u64();
        node.start_registryd().await;
        let again = eventually("registered anew", async || {
            mesh.entry("ct110")
                .filter(|entry| entry["status"] == "online" && entry["lastSeen"].as_u64() > seen)
        })
        .await;
        assert_eq!((&again["id"], &again["registeredAt"]), (&first["id"], &first["registeredAt"]));
    }
    assert_eq!(mesh.registry()["nodes"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn heartbeats_move_last_seen_and_nothing_else() {
    let mesh = Mesh::new();
    let _node = registryd(&mesh, "ct110").await;
    let mut before = registered(&mesh, "ct110").await;
    for _ in 0..3 {
        let after = eventually("a heartbeat", async || {
            mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > before["lastSeen"].as_u64())
        })
        .await;
        before["lastSeen"] = after["lastSeen"].clone();
        assert_eq!(before, after);
    }
}

#[tokio::test]
async fn a_node_that_falls_silent_is_marked_offline_and_comes_back() {
    let mesh = Mesh::new();
    let quick = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(200);
        config["mesh"]["stale_threshold_ms"] = json!(2000);
    };
    let (mut one, mut two) =
        (mesh.node("ct110").with(quick).prepare().await, mesh.node("ct111").with(quick).prepare().await);
    one.start_registryd().await;
    two.start_registryd().await;
    registered(&mesh, "ct111").await;
    two.registryd().kill();
    eventually("ct111 is marked offline", async || {
        (mesh.entry("ct111")?["status"] == "offline").then_some(())
    })
    .await;
    let nodes = one.local("/mesh/nodes?node=ct111").await.unwrap().json();
    assert_eq!(nodes[0]["status"], "offline", "{nodes}");
    two.start_registryd().await;
    registered(&mesh, "ct111").await;
    assert_eq!(mesh.entry("ct110").unwrap()["status"], "online");
    one.registryd().wait_log(&["ct111", "offline"]).await;
}

#[tokio::test]
async fn nodes_that_are_no_agents_never_go_stale() {
    let mesh = Mesh::new();
    let quick = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(200);
        config["mesh"]["stale_threshold_ms"] = json!(1000);
    };
    mesh.register("ct150", "127.1.2.3", 3000, &[]);
    mesh.edit_registry(|registry| {
        let mut stale = entry("ct151", "127.1.2.4", 3000, &[]);
        stale["role"] = json!("agent");
        registry["nodes"]["id-ct151"] = stale;
    });
    let mut node = mesh.node("ct110").with(quick).prepare().await;
    node.start_registryd().await;
    eventually("the silent agent counts as offline", async || {
        let nodes = node.local("/mesh/nodes?node=ct151").await?.json();
        (nodes[0]["status"] == "offline").then_some(())
    })
    .await;
    // It does not say after which silence it is gone, so that is this reader's own matter.
    assert_eq!(mesh.entry("ct151").unwrap()["status"], "online");
    assert_eq!(mesh.entry("ct150").unwrap()["status"], "online", "a service does not heartbeat");
}

#[tokio::test]
async fn a_node_says_goodbye_on_sigterm() {
    let mesh = Mesh::new();
    let mut node = registryd(&mesh, "ct110").await;
    registered(&mesh, "ct110").await;
    assert!(node.registryd().stop().await.success());
    assert_eq!(mesh.entry("ct110").unwrap()["status"], "offline");
    assert!(!node.socket().exists(), "the socket was left behind");
}

#[tokio::test]
async fn what_other_programs_wrote_is_kept() {
    let mesh = Mesh::new();
    fs::write(
        mesh.registry_path(),
        json!({
            "version": 1, "updatedAt": 1.7e12, "owner": {"team": "rivet"},
            "nodes": {
                "old": {"name": "ct120", "host": "127.1.1.1", "gpu": {"vram": 24}, "agents": null, "status": "online",
                        "lastSeen": 5, "role": "service"},
                "note": {"comment": "not a node at all", "list": [1, 2]},
                "ours": {"id": "ours", "name": "ct110", "host": "127.9.9.9", "port": 1, "custom": "kept", "registeredAt": 7},
            },
        })
        .to_string(),
    )
    .unwrap();
    let mut node = registryd(&mesh, "ct110").await;
    let own = eventually("a heartbeat of the existing entry", async || {
        mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > Some(0))
    })
    .await;
    assert_eq!(own["custom"], "kept");
    assert_eq!((&own["id"], &own["registeredAt"]), (&json!("ours"), &json!(7)));
    assert_eq!(own["host"], node.ip().to_string());
    node.registryd().stop().await;
    let registry = mesh.registry();
    assert_eq!(registry["owner"]["team"], "rivet");
    assert_eq!(registry["nodes"]["note"], json!({"comment": "not a node at all", "list": [1, 2]}));
    assert_eq!(registry["nodes"]["old"]["gpu"]["vram"], 24);
}

/// Whether this content lies in the registry's folder, under whatever name.
fn still_there(mesh: &Mesh, content: &str) -> bool {
    let folder = mesh.registry_path();
    fs::read_dir(folder.parent().unwrap())
        .unwrap()
        .any(|file| fs::read(file.unwrap().path()).is_ok_and(|found| found == content.as_bytes()))
}

#[tokio::test]
async fn a_file_that_does_not_parse_at_the_start_is_never_overwritten() {
    for (content, told) in [
        (r#"[{"id": "a", "name": "ct110", "host": "x"}]"#, "flat-array"),
        (r#"{"version": 1, "nodes": {"a": {"na"#, "not valid JSON"),
        (r#"{"version": 2, "nodes": {}}"#, "version"),
    ] {
        let mesh = Mesh::new();
        fs::write(mesh.registry_path(), content).unwrap();
        let mut node = registryd(&mesh, "ct110").await;
        let line = node.registryd().wait_log(&["mesh.json", told, "nothing is known of the mesh yet"]).await;
        assert!(line.contains("WARN") || line.contains("ERROR"), "{line}");
        eventually("registryd reports the problem", async || {
            let status = node.local("/v1/status").await?.json();
            (!status["problems"].as_array()?.is_empty()).then_some(())
        })
        .await;
        assert!(still_there(&mesh, content), "{content:?} is gone");
        // Put right, it is used, without a restart.
        mesh_tests::mesh::replace_registry(
            &mesh.registry_path(),
            json!({"version": 1, "nodes": {}, "keep": 1}),
        );
        registered(&mesh, "ct110").await;
        assert_eq!(mesh.registry()["keep"], 1);
    }
}

/// What is left where a host lost its power.
#[tokio::test]
async fn an_empty_file_at_the_start_is_as_good_as_none() {
    for content in ["", " \n"] {
        let mesh = Mesh::new();
        fs::write(mesh.registry_path(), content).unwrap();
        let mut node =
            mesh.node("ct110").with(|config| config["registryd"]["agents"] = json!(["opus"])).prepare().await;
        node.registryd = Some(Daemon::start("ct110 registryd", &mut node.command("registryd")));
        eventually("ct110 is registered", async || {
            let registry: Value = serde_json::from_slice(&fs::read(mesh.registry_path()).unwrap()).ok()?;
            let entry = registry["nodes"].as_object()?.values().next()?.clone();
            (entry["name"] == "ct110" && entry["status"] == "online").then_some(())
        })
        .await;
        let mut files = fs::read_dir(mesh.registry_path().parent().unwrap()).unwrap();
        assert!(files.all(|file| !file.unwrap().file_name().to_string_lossy().contains("corrupt")));
    }
}

#[tokio::test]
async fn a_file_beyond_any_size_is_told_and_not_read() {
    let mesh = Mesh::new();
    let file = fs::File::create(mesh.registry_path()).unwrap();
    file.set_len((64 << 20) + 1).unwrap();
    let mut node = registryd(&mesh, "ct110").await;
    node.registryd().wait_log(&["WARN", "mesh.json has 67108865 bytes", "nothing is known"]).await;
    assert_eq!(file.metadata().unwrap().len(), (64 << 20) + 1);
    mesh_tests::mesh::replace_registry(&mesh.registry_path(), json!({"version": 1, "nodes": {}}));
    registered(&mesh, "ct110").await;
}

#[tokio::test]
async fn a_link_to_the_registry_stays_one() {
    let mesh = Mesh::new();
    let target = mesh.folder().join("elsewhere.json");
    std::os::unix::fs::symlink(&target, mesh.registry_path()).unwrap();
    let _node = registryd(&mesh, "ct110").await;
    let first = registered(&mesh, "ct110").await;
    eventually("a heartbeat", async || {
        mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > first["lastSeen"].as_u64())
    })
    .await;
    assert_eq!(fs::read_link(mesh.registry_path()).unwrap(), target);
}

#[tokio::test]
async fn numbers_that_are_no_times_stop_nobody() {
    let mesh = Mesh::new();
    let mut node = registryd(&mesh, "ct110").await;
    registered(&mesh, "ct110").await;
    for (last_seen, next) in [(1_u64 << 63, "ct152"), ((1 << 63) + 5, "ct153"), (u64::MAX, "ct154")] {
        mesh.edit_registry(|registry| {
            let mut odd = entry("ct151", "127.1.2.3", 3000, &[]);
            (odd["role"], odd["lastSeen"], odd["registeredAt"]) =
                (json!("agent"), json!(last_seen), json!(last_seen));
            registry["nodes"]["id-ct151"] = odd;
            registry["nodes"][next] = entry(next, "127.1.2.3", 3000, &[]);
        });
        eventually("the file is still read", async || {
            let nodes = node.local("/mesh/nodes").await?.json();
            nodes.as_array()?.iter().any(|node| node["name"] == next).then_some(())
        })
        .await;
        assert!(node.registryd().is_running());
        assert_eq!(mesh.entry("ct151").unwrap()["lastSeen"], last_seen, "another's entry was changed");
    }
}

/// An earlier process of the node had a clock that was ahead, or another program wrote nonsense.
#[tokio::test]
async fn a_stamp_from_the_future_is_caught_up_with() {
    let month = 30 * 24 * 3_600_000;
    for (ahead, counted_on) in [(epoch_ms() + month, true), (1 << 60, false)] {
        let mesh = Mesh::new();
        mesh.edit_registry(|registry| {
            let mut own = entry("ct110", "127.1.2.3", 3000, &[]);
            (own["role"], own["lastSeen"], own["registeredAt"]) =
                (json!("agent"), json!(ahead), json!(ahead));
            registry["nodes"]["id-ct110"] = own;
        });
        let observer = registryd(&mesh, "ct111").await;
        let _node = registryd(&mesh, "ct110").await;
        eventually("ct111 sees the beats of ct110", async || {
            let shown = observer.local("/mesh/nodes?node=ct110").await?.json()[0].clone();
            (shown["status"] == "online" && shown["ageMs"].as_u64()? < 10_000).then_some(())
        })
        .await;
        let own = mesh.entry("ct110").unwrap();
        let last_seen = own["lastSeen"].as_u64().unwrap();
        match counted_on {
            true => assert!(last_seen > ahead && last_seen < ahead + month, "{own}"),
            false => assert!(last_seen < epoch_ms() + month, "{own}"),
        }
        assert!(own["registeredAt"].as_u64() <= Some(last_seen), "{own}");
    }
}

/// Of a large file that keeps changing, each node reads a part of the time only.
#[tokio::test]
async fn a_large_file_hides_nobodys_silence() {
    let mesh = Mesh::new();
    mesh.edit_registry(|registry| registry["ballast"] = json!("x".repeat(400 * 1024)));
    let slow = |config: &mut Value| {
        config["mesh"]["heartbeat_interval_ms"] = json!(6000);
        config["mesh"]["stale_threshold_ms"] = json!(9000);
    };
    let (mut one, mut two) =
        (mesh.node("ct110").with(slow).prepare().await, mesh.node("ct111").with(slow).prepare().await);
    one.start_registryd().await;
    two.start_registryd().await;
    let shown =
        async || one.local("/mesh/nodes?node=ct111").await?.json()[0]["status"].as_str().map(str::to_owned);
    eventually("ct111 is online for ct110", async || (shown().await? == "online").then_some(())).await;
    two.registryd().kill();
    eventually("ct111 is offline for ct110", async || {
        mesh.edit_registry(|registry| registry["changed"] = json!(epoch_ms()));
        (shown().await? == "offline").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_missed_beat_shows_in_the_age_and_nowhere_else() {
    let mesh = Mesh::new();
    let (one, mut two) = mesh.pair().await;
    let age = async || {
        let shown = one.local("/mesh/nodes?node=ct111").await?.json()[0].clone();
        assert_eq!(shown["status"], "online");
        shown["ageMs"].as_u64()
    };
    // The interval is half a second.
    eventually("ct111 is heard of", async || age().await.filter(|age| *age < 1500)).await;
    two.registryd().freeze().await;
    eventually("more than three beats are missing", async || age().await.filter(|age| *age > 1500)).await;
    let shown = succeed(one.command("meshctl").arg("nodes"));
    let row = shown.lines().find(|line| line.starts_with("ct111")).unwrap();
    assert!(row.contains("online") && row.contains(" s ago"), "{shown}");
    assert_eq!(mesh.entry("ct111").unwrap()["status"], "online");
    two.registryd().signal(libc::SIGCONT);
    eventually("ct111 is heard of again", async || age().await.filter(|age| *age < 1500)).await;
}

#[tokio::test]
async fn heartbeats_of_many_come_an_interval_apart_and_not_in_step() {
    let mesh = Mesh::new();
    let interval_ms = 2000;
    let mut nodes = Vec::new();
    for i in 0..20 {
        let name = format!("ct2{i:02}");
        let plan =
            mesh.node(&name).with(|config| config["mesh"]["heartbeat_interval_ms"] = json!(interval_ms));
        nodes.push(plan.prepare().await);
    }
    for node in &mut nodes {
        node.registryd = Some(Daemon::start(&node.name, &mut node.command("registryd")));
    }
    let mut stamps: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    eventually("five beats of each", async || {
        if mesh.registry_path().exists() {
            for entry in mesh.registry()["nodes"].as_object()?.values() {
                let stamp = entry["lastSeen"].as_u64()?;
                let seen = stamps.entry(entry["name"].as_str()?.into()).or_default();
                seen.extend((seen.last() != Some(&stamp)).then_some(stamp));
            }
        }
        (stamps.len() == nodes.len() && stamps.values().all(|seen| seen.len() >= 5)).then_some(())
    })
    .await;
    // What follows the first registration may come sooner.
    let beats = stamps.values().flat_map(|seen| seen[1..].windows(2).map(|pair| pair[1] - pair[0]));
    let mut apart: Vec<u64> = beats.collect();
    apart.sort();
    assert!(apart[0] > interval_ms / 3 && apart[apart.len() - 1] < 3 * interval_ms, "{apart:?}");
    // Without jitter, nobody is early and most are late by a little.
    assert!(apart[apart.len() / 2] < interval_ms, "{apart:?}");
}

#[tokio::test]
async fn a_sidecar_that_died_degrades_its_node() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    registered(&mesh, "ct110").await;
    eventually("the sidecar has reported", async || {
        (!node.local("/v1/status").await?.json()["sidecar"].is_null()).then_some(())
    })
    .await;
    node.proxy().kill();
    eventually("ct110 is degraded", async || (mesh.entry("ct110")?["status"] == "degraded").then_some(()))
        .await;
    node.start_proxy().await;
    registered(&mesh, "ct110").await;
}

#[tokio::test]
async fn a_file_that_breaks_while_running_costs_nothing() {
    let mesh = Mesh::new();
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    mesh.edit_registry(|registry| registry["nodes"]["id-ct150"]["gpu"] = json!("kept"));
    let mut node = registryd(&mesh, "ct110").await;
    registered(&mesh, "ct110").await;
    let good = fs::read_to_string(mesh.registry_path()).unwrap();
    let half = &good[..good.len() / 2];
    fs::write(mesh.registry_path(), half).unwrap();
    node.registryd().wait_log(&["mesh.json", "not valid JSON"]).await;
    assert!(still_there(&mesh, half), "the broken content is gone");
    // The last good view is still served.
    let nodes = node.local("/mesh/nodes?node=ct150").await.unwrap().json();
    assert_eq!(nodes[0]["agents"], json!(["scout"]));
    let whole: Value = serde_json::from_str(&good).unwrap();
    mesh_tests::mesh::replace_registry(&mesh.registry_path(), whole);
    let seen = epoch_ms();
    eventually("heartbeats go on", async || {
        mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > Some(seen))
    })
    .await;
    assert_eq!(mesh.entry("ct150").unwrap()["gpu"], "kept");
}

#[tokio::test]
async fn the_socket_is_for_the_owner_and_the_group_only() {
    let mesh = Mesh::new();
    let node = registryd(&mesh, "ct110").await;
    assert_eq!(fs::metadata(node.socket()).unwrap().permissions().mode() & 0o777, 0o660);
}

#[tokio::test]
async fn a_socket_left_by_a_kill_does_not_keep_registryd_from_starting() {
    let mesh = Mesh::new();
    let mut node = registryd(&mesh, "ct110").await;
    node.registryd().kill();
    assert!(node.socket().exists());
    node.start_registryd().await;
}

#[tokio::test]
async fn a_second_registryd_of_the_same_node_is_refused() {
    let mesh = Mesh::new();
    let node = registryd(&mesh, "ct110").await;
    let second = mesh_tests::process::run(&mut node.command("registryd"));
    assert!(!second.status.success());
    let told = mesh_tests::process::text(&second.stdout) + &mesh_tests::process::text(&second.stderr);
    assert!(told.contains("registryd.sock"), "{told}");
    assert!(node.local("/v1/status").await.is_some(), "the first one was harmed");
}

#[tokio::test]
async fn a_change_of_the_registry_reaches_the_sidecar() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    assert_eq!(node.get("/nodes/ct150/x").await.header("x-mesh-error"), Some("unknown_node"));
    let (peer, _address) = mesh.peer("ct150", &["scout"]).await;
    node.comes_to("/agents/scout/x", None).await;
    mesh.amend("ct150", |entry| entry["agents"] = json!(["ranger"]));
    node.comes_to("/agents/scout/x", Some("unknown_agent")).await;
    node.comes_to("/agents/ranger/x", None).await;
    mesh.amend("ct150", |entry| entry["status"] = json!("offline"));
    node.comes_to("/nodes/ct150/x", Some("node_offline")).await;
    mesh.amend("ct150", |entry| entry["status"] = json!("online"));
    node.comes_to("/nodes/ct150/x", None).await;
    mesh.edit_registry(|registry| drop(registry["nodes"].as_object_mut().unwrap().remove("id-ct150")));
    node.comes_to("/nodes/ct150/x", Some("unknown_node")).await;
    drop(peer);
}

#[tokio::test]
async fn an_operator_takes_a_node_out_for_an_update_and_back() {
    let mesh = Mesh::new();
    let (one, two) = mesh.pair().await;
    let set = async |status: &str| {
        let request = web::request(Method::PUT, "/v1/status").header("content-type", "application/json");
        let request = request.body(web::full(json!({"status": status}).to_string())).unwrap();
        web::on_socket(&two.socket(), request).await.unwrap()
    };
    assert_eq!(set("updating").await.status, 204);
    eventually("ct111 is updating", async || (mesh.entry("ct111")?["status"] == "updating").then_some(()))
        .await;
    one.comes_to("/agents/grok/x", Some("agent_offline")).await;
    assert_eq!(set("online").await.status, 204);
    one.comes_to("/agents/grok/x", None).await;
    assert_eq!(set("offline").await.status, 400);
}

#[tokio::test]
async fn an_update_lasts_across_restarts_until_it_is_ended() {
    let mesh = Mesh::new();
    let mut node = registryd(&mesh, "ct110").await;
    registered(&mesh, "ct110").await;
    let is = async |status: &str| {
        eventually(&format!("ct110 is {status}"), async || {
            (mesh.entry("ct110")?["status"] == status).then_some(())
        })
        .await;
    };
    let meshctl = |node: &Node, arguments: &[&str]| {
        mesh_tests::process::text(&mesh_tests::process::run(node.command("meshctl").args(arguments)).stdout)
    };
    meshctl(&node, &["status", "set", "updating"]);
    is("updating").await;
    for kill in [false, true] {
        match kill {
            true => node.registryd().kill(),
            false => {
                assert!(node.registryd().stop().await.success());
                assert_eq!(mesh.entry("ct110").unwrap()["status"], "offline");
            }
        }
        let seen = mesh.entry("ct110").unwrap()["lastSeen"].as_u64();
        node.start_registryd().await;
        // From its very first heartbeat on: it takes no task in between.
        let first = eventually("the first heartbeat", async || {
            mesh.entry("ct110").filter(|entry| entry["lastSeen"].as_u64() > seen)
        })
        .await;
        assert_eq!(first["status"], "updating");
        node.registryd().wait_log(&["still being updated", "meshctl status set online"]).await;
    }
    let told = meshctl(&node, &["status"]);
    assert!(told.contains("updating"), "{told}");
    meshctl(&node, &["status", "set", "online"]);
    is("online").await;
    assert!(node.registryd().stop().await.success());
    node.start_registryd().await;
    is("online").await;
}

/// DESIGN: a change in the registry is in the sidecar's routing within a second.
#[tokio::test]
async fn changes_reach_the_sidecar_at_once() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let limit = std::time::Duration::from_secs(5);
    let mut taken = Vec::new();
    for i in 0..8 {
        let (name, agent) = (format!("ct15{i}"), format!("scout-{i}"));
        let started = std::time::Instant::now();
        match i % 2 {
            // By another program's change of the file, which the node has to notice.
            0 => mesh.register(&name, "127.1.2.3", 3000 + i, &[&agent]),
            // By a registration at this node itself.
            _ => {
                let request = web::request(Method::POST, "/api/mesh/join");
                let body = entry(&name, "127.1.2.3", 3000 + i, &[&agent]).to_string();
                let answer = node.from_peer(&mesh, &name, request.body(web::full(body)).unwrap()).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        }
        let target = format!("/agents/{agent}/x");
        mesh_tests::eventually_within(limit, "the agent is routed", async || {
            (node.get(&target).await.header("x-mesh-error") != Some("unknown_agent")).then_some(())
        })
        .await;
        taken.push(started.elapsed());
    }
    println!("from change to routing: {taken:?}");
}
