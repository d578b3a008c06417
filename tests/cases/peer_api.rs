//! What a peer finds on the inbound side besides the backend: ping, the registry, join, the agents.

use http::Method;
use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, entry};
use mesh_tests::web;
use serde_json::{Value, json};

#[tokio::test]
async fn ping_tells_status_node_tls_and_the_callers_name() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    // Neither registryd nor a backend is needed for it.
    node.start_proxy().await;
    let answer = node.get_from_peer(&mesh, "ct111", "/api/mesh/ping").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"status": "ok", "ok": true, "node": "ct110", "tls": true, "cn": "ct111"})
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    node.proxy()
        .wait_log(&["INFO [AgentChannel] Request peer.cn=ct111 GET /api/mesh/ping status=200 duration_ms="])
        .await;

    let head = web::request(Method::HEAD, "/api/mesh/ping").body(web::empty()).unwrap();
    let head = node.from_peer(&mesh, "ct111", head).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let post = web::request(Method::POST, "/api/mesh/ping").body(web::full("x")).unwrap();
    node.from_peer(&mesh, "ct111", post).await.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn the_registry_is_an_array_of_nodes() {
    let mesh = Mesh::new();
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    mesh.edit_registry(|registry| registry["nodes"]["id-ct150"]["rack"] = json!({"row": 7}));
    let mut node = mesh.start("ct110", "opus").await;
    let answer = eventually("both nodes in GET /api/mesh", async || {
        let answer = node.get_from_peer(&mesh, "ct150", "/api/mesh").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.json().as_array().unwrap().len() == 2).then_some(answer)
    })
    .await;
    let nodes = answer.json();
    let find =
        |name: &str| nodes.as_array().unwrap().iter().find(|node| node["name"] == name).unwrap().clone();
    let own = find("ct110");
    assert_eq!(own["agents"], json!(["opus"]));
    assert_eq!((&own["status"], &own["port"]), (&json!("online"), &json!(3000)));
    assert_eq!(own["host"], node.ip().to_string());
    for field in ["id", "version"] {
        assert!(own[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {own}");
    }
    for field in ["providers", "models", "capabilities"] {
        assert!(own[field].is_array(), "{field}: {own}");
    }
    let times = (own["registeredAt"].as_u64().unwrap(), own["lastSeen"].as_u64().unwrap());
    assert!(times.0 > 1 << 40 && times.1 > 1 << 40, "{own}");
    assert_eq!(find("ct150")["rack"]["row"], 7, "an unknown field was lost");
    node.proxy().wait_log(&["Request peer.cn=ct150 GET /api/mesh status=200"]).await;
    assert!(node.agent().requests().is_empty(), "the backend was asked");
}

#[tokio::test]
async fn the_agents_of_this_node_are_listed() {
    let mesh = Mesh::new();
    let plan = mesh.node("ct110").with(|config| {
        config["registryd"]["agents"] =
            json!(["opus", {"name": "grok", "id": "g1", "provider": "xai", "model": "grok-4"}]);
    });
    let node = plan.start().await;
    let answer = node.get_from_peer(&mesh, "ct111", "/api/agents").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"agents": [
            {"id": "opus", "name": "opus", "provider": null, "model": null},
            {"id": "g1", "name": "grok", "provider": "xai", "model": "grok-4"},
        ]})
    );
}

async fn join(mesh: &Mesh, node: &mesh_tests::mesh::Node, peer: &str, body: &Value) -> web::Answer {
    let request = web::request(Method::POST, "/api/mesh/join").header("content-type", "application/json");
    node.from_peer(mesh, peer, request.body(web::full(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn a_peer_may_register_itself() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let mut body = entry("ct112", "127.9.9.9", 3000, &["scout"]);
    body["rack"] = json!(3);
    let answer = join(&mesh, &node, "ct112", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["status"], "ok");
    let names: Vec<_> =
        answer.json()["nodes"].as_array().unwrap().iter().map(|node| node["name"].clone()).collect();
    assert!(names.contains(&json!("ct110")) && names.contains(&json!("ct112")), "{names:?}");
    let entered = mesh.entry("ct112").expect("an acknowledged join is in the file");
    assert_eq!(entered["agents"], json!(["scout"]));
    assert_eq!(entered["rack"], 3, "an unknown field of the peer's was lost");
    assert_eq!(entered["host"], "127.9.9.9");
}

#[tokio::test]
async fn a_peer_may_register_nobody_else() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    let before = mesh.entry("ct150");
    for body in [
        entry("ct150", "127.9.9.9", 3000, &["scout"]),
        entry("ct110", "127.9.9.9", 3000, &["opus"]),
        // Its own name, but the host of another.
        entry("ct112", "ct150.mesh", 3000, &["scout"]),
    ] {
        let answer = join(&mesh, &node, "ct112", &body).await;
        answer.problem(403, "join_other_node");
    }
    // An agent's or a device's certificate is no node's.
    assert_eq!(mesh.entry("ct150"), before);
    assert_eq!(mesh.entry("ct112"), None);
    node.registryd().wait_log(&["WARN", "ct112", "ct150"]).await;
}

#[tokio::test]
async fn a_join_that_is_no_node_is_refused_in_words() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    for body in [json!(null), json!([]), json!({}), json!({"name": "ct112"})] {
        join(&mesh, &node, "ct112", &body).await.problem(400, "bad_node");
    }
    // Each limit has an error of its own.
    let wrong_host = json!({"name": "ct112", "host": "a b", "port": 1});
    join(&mesh, &node, "ct112", &wrong_host).await.problem(400, "bad_node_host");
    let request = web::request(Method::POST, "/api/mesh/join").body(web::full("{not json")).unwrap();
    node.from_peer(&mesh, "ct112", request).await.problem(400, "bad_node");
    // Refused by its announced length; nothing of it is sent.
    let (_sender, body) = web::channel();
    let request = web::request(Method::POST, "/api/mesh/join").header("content-length", "2000000");
    let answer = node.from_peer(&mesh, "ct112", request.body(body).unwrap()).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
}

#[tokio::test]
async fn each_limit_on_a_join_has_an_error_of_its_own() {
    let mesh = Mesh::new();
    let mut node = mesh.start("ct110", "opus").await;
    let many = json!((0..257).map(|i| format!("a{i}")).collect::<Vec<_>>());
    let long = "x".repeat(257);
    for (field, value, code) in [
        ("agents", many.clone(), "too_many_agents"),
        ("providers", many.clone(), "too_many_providers"),
        ("models", many.clone(), "too_many_models"),
        ("capabilities", many, "too_many_capabilities"),
        ("models", json!([long]), "node_text_too_long"),
        ("version", json!(long), "node_text_too_long"),
        ("name", json!("no name"), "bad_node_name"),
        ("name", json!("n".repeat(64)), "bad_node_name"),
        ("agents", json!(["a/b"]), "bad_agent_name"),
        ("agents", json!(["a".repeat(65)]), "bad_agent_name"),
        ("host", json!("http://10.0.0.1"), "bad_node_host"),
        ("port", json!(0), "bad_node_port"),
        ("metadata", json!({"notes": "x".repeat(70_000)}), "node_metadata_too_large"),
    ] {
        let mut body = entry("ct112", "127.9.9.9", 3000, &["scout"]);
        body[field] = value;
        join(&mesh, &node, "ct112", &body).await.problem(400, code);
    }
    // Just at the limits it is taken; just above, with and without a length, it is not.
    let sized = |bytes: usize| {
        let body = entry("ct112", "127.9.9.9", 3000, &["scout"]).to_string();
        body.replacen('{', &format!("{{{}", " ".repeat(bytes - body.len())), 1)
    };
    for (bytes, streamed) in [(1 << 20, false), (1 << 20, true), ((1 << 20) + 1, false), (2 << 20, true)] {
        let (sender, stream) = web::channel();
        let body = match streamed {
            false => web::full(sized(bytes)),
            true => {
                sender.send(web::piece(sized(bytes))).unwrap();
                stream
            }
        };
        drop(sender);
        let request = web::request(Method::POST, "/api/mesh/join").body(body).unwrap();
        let answer = node.from_peer(&mesh, "ct112", request).await;
        match bytes == 1 << 20 {
            true => assert_eq!(answer.status, 200, "{}", answer.text()),
            false => drop(answer.problem(413, "body_too_large")),
        }
    }
    for host in ["ct110.mesh", "CT110.MESH.", "ct110", "ct199.mesh"] {
        let answer = join(&mesh, &node, "ct112", &entry("ct112", host, 3000, &["scout"])).await;
        answer.problem(403, "join_other_node");
        node.registryd().wait_log(&["WARN [Registry] join refused", host, "peer.cn=ct112"]).await;
    }
    assert_eq!(mesh.entry("ct112").unwrap()["host"], "127.9.9.9");
    // Nothing that was refused is counted as registered.
    assert_eq!(mesh.registry()["nodes"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn a_join_that_arrives_too_slowly_is_ended_and_told() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let (sender, body) = web::channel();
    sender.send(web::piece("{\"name\": ")).unwrap();
    let request = web::request(Method::POST, "/api/mesh/join").body(body).unwrap();
    let client = mesh_tests::tls::Client::new(&mesh.ca, &mesh.ca.node("ct112"));
    let mut connection = client.http(node.inbound(), "ct110").await;
    // registryd waits for 30 s.
    let limit = std::time::Duration::from_secs(60);
    let response = tokio::time::timeout(limit, connection.open(request)).await.unwrap().unwrap();
    web::Answer::read(response).await.unwrap().problem(408, "body_too_slow");
    drop(sender);
}

#[tokio::test]
async fn without_registryd_its_paths_say_so() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_proxy().await;
    for path in ["/api/mesh", "/api/agents"] {
        node.get_from_peer(&mesh, "ct111", path).await.problem(503, "registry_unavailable");
    }
    join(&mesh, &node, "ct111", &entry("ct111", "127.1.1.1", 3000, &[]))
        .await
        .problem(503, "registry_unavailable");
    node.get("/mesh/nodes").await.problem(503, "registry_unavailable");
}

#[tokio::test]
async fn the_private_part_of_the_socket_is_no_peers_business() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    for path in ["/v1/status", "/v1/sidecar", "/v1/roster/watch", "/mesh/nodes"] {
        let answer = node.get_from_peer(&mesh, "ct111", path).await;
        assert_eq!(answer.text(), format!("GET {path}"), "not passed to the backend");
    }
}
