//! How a sidecar follows the roster: what changed since the revision that it has, everything where nobody knows that
//! one; and either side may be of an older version.

use std::collections::BTreeMap;
use std::path::Path;

use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, entry};
use mesh_tests::tls::{Peer, PeerOptions};
use mesh_tests::{eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// The lines of `GET /v1/roster/watch` on registryd's socket.
struct Feed(Lines<BufReader<UnixStream>>);

impl Feed {
    async fn open(socket: &Path, query: &str) -> Self {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        // HTTP/1.0: what comes is not cut into chunks.
        let request = format!("GET /v1/roster/watch{query} HTTP/1.0\r\nhost: registryd\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(BufReader::new(stream).lines())
    }

    /// The next line that says something.
    async fn next(&mut self) -> Value {
        loop {
            let line = within("a line of the roster", self.0.next_line()).await.unwrap().expect("a line");
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }

    /// The next line with news of this node.
    async fn of(&mut self, node: &str) -> Value {
        loop {
            let line = self.next().await;
            if names(&line["nodes"]).contains(&node) || names(&line["removed"]).contains(&node) {
                return line;
            }
        }
    }
}

/// The names in a list of rows or of names.
fn names(list: &Value) -> Vec<&str> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| item.as_str().or_else(|| item["name"].as_str())).collect()
}

/// Enters an update in what is known, as a sidecar does. Returns the revision after it.
fn apply(known: &mut BTreeMap<String, Value>, update: &Value) -> Value {
    if update["since"].is_null() {
        known.clear();
    }
    for name in names(&update["removed"]) {
        known.remove(name);
    }
    for row in update["nodes"].as_array().unwrap() {
        known.insert(row["name"].as_str().unwrap().into(), row.clone());
    }
    update["revision"].clone()
}

#[tokio::test]
async fn a_sidecar_is_told_what_changed_since_it_was_told_last() {
    let mesh = Mesh::new();
    for i in 0..20 {
        mesh.register(&format!("ct2{i:02}"), &format!("10.0.1.{i}"), 3000, &["scout"]);
    }
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    let socket = node.socket();
    eventually("all nodes are known", async || {
        (node.local("/mesh/nodes").await?.json().as_array()?.len() == 21).then_some(())
    })
    .await;
    let mut feed = Feed::open(&socket, "?since=0").await;
    let first = feed.next().await;
    assert!(first["since"].is_null(), "of revision 0 nothing is known: {first}");
    assert_eq!(names(&first["nodes"]).len(), 21);

    // One that joins, one that changes, one that goes: each alone, and continuing the line before.
    mesh.register("ct250", "10.0.2.50", 3000, &["ranger"]);
    let added = feed.of("ct250").await;
    assert_eq!(names(&added["nodes"]), ["ct250"]);
    mesh.amend("ct201", |entry| entry["status"] = json!("updating"));
    let changed = feed.of("ct201").await;
    assert_eq!((&changed["since"], names(&changed["nodes"])), (&added["revision"], vec!["ct201"]));
    assert_eq!(changed["nodes"][0]["status"], "updating");
    mesh.edit_registry(|registry| drop(registry["nodes"].as_object_mut().unwrap().remove("id-ct202")));
    let removed = feed.of("ct202").await;
    assert_eq!(names(&removed["removed"]), ["ct202"]);
    assert_eq!((&removed["since"], &removed["nodes"]), (&changed["revision"], &json!([])));

    // Who comes back with what it has gets the rest; of what nobody knows, everything. Without a word of it, as older
    // sidecars ask, every line is whole.
    let again = Feed::open(&socket, &format!("?since={}", added["revision"])).await.next().await;
    assert_eq!((&again["since"], &again["revision"]), (&added["revision"], &removed["revision"]));
    assert_eq!((names(&again["nodes"]), names(&again["removed"])), (vec!["ct201"], vec!["ct202"]));
    for unknown in ["?since=12", "?since=x", "?since=99999999999999999"] {
        let whole = Feed::open(&socket, unknown).await.next().await;
        assert_eq!((whole["since"].is_null(), names(&whole["nodes"]).len()), (true, 21), "{unknown}");
    }
    let mut older = Feed::open(&socket, "").await;
    assert_eq!(names(&older.next().await["nodes"]).len(), 21);
    mesh.register("ct251", "10.0.2.51", 3000, &[]);
    let next = older.of("ct251").await;
    assert_eq!((next["since"].is_null(), names(&next["nodes"]).len()), (true, 22));

    // A restarted registryd knows no revision of the one before.
    node.registryd().kill();
    node.start_registryd().await;
    let mut feed = Feed::open(&socket, &format!("?since={}", next["revision"])).await;
    assert!(feed.next().await["since"].is_null());
}

#[tokio::test]
async fn after_any_changes_the_differences_add_up_to_the_whole() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    let (mut known, mut feed) = (BTreeMap::new(), Feed::open(&node.socket(), "?since=0").await);
    let (mut revision, mut state) = (json!(0), 7_u64);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..12 {
        mesh.edit_registry(|registry| {
            let nodes = registry["nodes"].as_object_mut().unwrap();
            for _ in 0..1 + random(6) {
                let (name, agents) = (format!("ct3{:02}", random(15)), [["scout"], ["ranger"]]);
                let id = format!("id-{name}");
                match random(3) {
                    0 => drop(nodes.remove(&id)),
                    _ => {
                        let host = format!("10.0.3.{}", 1 + random(200));
                        nodes.insert(id, entry(&name, &host, 3000, &agents[random(2) as usize]));
                    }
                }
            }
            // By which it shows that all of this has been read.
            let mark = entry("ct399", "10.0.3.250", 3000 + round, &[]);
            nodes.insert("id-ct399".into(), mark);
        });
        while known.get("ct399").map(|row: &Value| row["port"].clone()) != Some(json!(3000 + round)) {
            revision = apply(&mut known, &feed.next().await);
        }
        // What is looked up meanwhile changes rows, too, so they are compared at one revision.
        let mut whole = Feed::open(&node.socket(), "").await.next().await;
        while revision != whole["revision"] {
            if revision.as_u64() > whole["revision"].as_u64() {
                whole = Feed::open(&node.socket(), "").await.next().await;
            } else {
                revision = apply(&mut known, &feed.next().await);
            }
        }
        let rows = whole["nodes"].as_array().unwrap().iter();
        let whole: BTreeMap<String, Value> =
            rows.map(|row| (row["name"].as_str().unwrap().into(), row.clone())).collect();
        assert_eq!(known, whole, "round {round}");
    }
}

/// A registryd on this socket, of which the test says what it sends to each sidecar that follows its roster.
fn registryd_by_hand(socket: &Path) -> mpsc::Receiver<(String, UnixStream)> {
    let listener = UnixListener::bind(socket).unwrap();
    let (followers, follows) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let followers = followers.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let line = String::from_utf8_lossy(&request).lines().next().unwrap().to_owned();
                if line.contains("/v1/roster/watch") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    // Fails only when the test has ended.
                    let _ = followers.send((line, stream)).await;
                } else {
                    let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    follows
}

async fn send(stream: &mut UnixStream, update: Value) {
    stream.write_all(format!("{update}\n").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_sidecar_takes_whole_rosters_of_an_older_registryd_and_differences_only_where_they_fit() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    let mut follows = registryd_by_hand(&node.socket());
    node.start_proxy().await;
    let (first, second) = (Loopback::take(), Loopback::take());
    let peer = async |name: &str, address: &Loopback| {
        Peer::start(address.port(3000), name, PeerOptions::good(&mesh.ca, name)).await
    };
    let _peers = (peer("ct111", &first).await, peer("ct112", &second).await);
    let row = |name: &str, address: &Loopback| {
        json!({"name": name, "status": "online", "agents": [format!("agent-of-{name}")],
               "addresses": [address.ip().to_string()], "port": 3000})
    };

    // An older one: it knows of no differences, and its revisions begin at 1.
    let (asked, mut older) = within("the sidecar follows", follows.recv()).await.unwrap();
    assert!(asked.contains("/v1/roster/watch?since=0 "), "{asked}");
    send(&mut older, json!({"revision": 1, "nodes": [row("ct111", &first)]})).await;
    node.comes_to("/agents/agent-of-ct111/x", None).await;
    send(&mut older, json!({"revision": 2, "nodes": [row("ct112", &second)]})).await;
    node.comes_to("/agents/agent-of-ct112/x", None).await;
    node.comes_to("/nodes/ct111/x", Some("unknown_node")).await;
    drop(older);

    // It comes back with what it has, and gets what it lacks.
    let (asked, mut newer) = within("the sidecar follows again", follows.recv()).await.unwrap();
    assert!(asked.contains("?since=2 "), "{asked}");
    send(
        &mut newer,
        json!({"revision": 4, "since": 2, "nodes": [row("ct111", &first)], "removed": ["ct112"]}),
    )
    .await;
    node.comes_to("/agents/agent-of-ct111/x", None).await;
    node.comes_to("/nodes/ct112/x", Some("unknown_node")).await;

    // What does not continue that changes nothing, and it asks for everything.
    send(&mut newer, json!({"revision": 9, "since": 8, "nodes": [], "removed": ["ct111"]})).await;
    let (asked, mut newer) = within("the sidecar asks for all", follows.recv()).await.unwrap();
    assert!(asked.contains("?since=0 "), "{asked}");
    assert_eq!(node.get("/agents/agent-of-ct111/x").await.status, 200);
    // registryd has not seen its registry: that takes nothing away, and no difference can continue it.
    send(&mut newer, json!({"revision": 10, "nodes": [row("ct112", &second)], "partial": true})).await;
    node.comes_to("/agents/agent-of-ct112/x", None).await;
    assert_eq!(node.get("/agents/agent-of-ct111/x").await.status, 200);
    drop(newer);
    let (asked, mut last) = within("the sidecar asks for all again", follows.recv()).await.unwrap();
    assert!(asked.contains("?since=0 "), "{asked}");
    send(&mut last, json!({"revision": 11, "nodes": [row("ct112", &second)]})).await;
    node.comes_to("/nodes/ct111/x", Some("unknown_node")).await;

    // After a restart without registryd it knows what it knew, and at which revision.
    drop((last, follows));
    node.proxy().stop().await;
    std::fs::remove_file(node.socket()).unwrap();
    node.start_proxy().await;
    assert_eq!(node.get("/agents/agent-of-ct112/x").await.status, 200);
    let mut follows = registryd_by_hand(&node.socket());
    let (asked, _last) = within("the sidecar follows the last", follows.recv()).await.unwrap();
    assert!(asked.contains("?since=11 "), "{asked}");
}
