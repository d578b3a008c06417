//! What can be asked of the registry on a host: nodes by what they are and offer, and what is refused.

use http::Method;
use mesh_tests::mesh::Mesh;
use mesh_tests::process::succeed;
use mesh_tests::{eventually, web};
use serde_json::{Value, json};

#[tokio::test]
async fn nodes_are_found_by_what_they_offer() {
    let mesh = Mesh::new();
    for (name, agent, capability, provider, model) in [
        ("ct150", "scout", "gpu", "xai", "grok-4"),
        ("ct151", "ranger", "shell access", "anthropic", "claude/opus"),
    ] {
        mesh.register(name, "127.1.2.3", 3000, &[agent]);
        mesh.edit_registry(|registry| {
            let entry = &mut registry["nodes"][format!("id-{name}")];
            entry["capabilities"] = json!([capability]);
            entry["providers"] = json!([provider]);
            entry["models"] = json!([model]);
        });
    }
    mesh.amend("ct151", |entry| entry["status"] = json!("updating"));
    let node = mesh.start("ct110", "opus").await;
    eventually("all three are known", async || {
        (node.get("/mesh/nodes").await.json().as_array()?.len() == 3).then_some(())
    })
    .await;
    for (filter, value, encoded, found) in [
        ("node", "ct150", "CT150", "ct150"),
        ("agent", "ranger", "ranger", "ct151"),
        ("capability", "shell access", "shell%20access", "ct151"),
        ("capability", "shell access", "shell+access", "ct151"),
        ("provider", "xai", "xai", "ct150"),
        ("model", "claude/opus", "claude%2Fopus", "ct151"),
        ("status", "updating", "updating", "ct151"),
    ] {
        let answer = node.get(&format!("/mesh/nodes?{filter}={encoded}")).await.json();
        let told = succeed(node.command("meshctl").args(["nodes", "--json", &format!("--{filter}"), value]));
        for nodes in [answer, serde_json::from_str(&told).unwrap()] {
            let names: Vec<&Value> = nodes.as_array().unwrap().iter().map(|node| &node["name"]).collect();
            assert_eq!(names, [found], "{filter}={value}");
        }
    }
    let none = node.get("/mesh/nodes?provider=xai&model=claude%2Fopus").await;
    assert_eq!(none.json(), json!([]));
    let detail = node.get("/mesh/nodes?colour=red").await.problem(400, "bad_request");
    assert!(detail.contains("colour") && detail.contains("capability"), "{detail}");
}

/// RivetOS may name its own fields as it likes.
#[tokio::test]
async fn fields_of_other_programs_do_not_pass_for_observations() {
    let mesh = Mesh::new();
    mesh.register("ct150", "127.1.2.3", 3000, &["scout"]);
    mesh.edit_registry(|registry| {
        let entry = &mut registry["nodes"]["id-ct150"];
        for (key, value) in [
            ("local", json!(true)),
            ("addresses", json!("none")),
            ("ageMs", json!(-1)),
            ("skewMs", json!([])),
        ] {
            entry[key] = value;
        }
        entry["rack"] = json!(7);
    });
    let node = mesh.start("ct110", "opus").await;
    let view = eventually("ct150 is known", async || {
        Some(node.get("/mesh/nodes?node=ct150").await.json().as_array()?.first()?.clone())
    })
    .await;
    assert_eq!((&view["local"], &view["rack"]), (&json!(false), &json!(7)));
    assert!(view["addresses"].is_array(), "{view}");
    for command in [&["nodes"][..], &["nodes", "--json"], &["hosts"], &["agents"]] {
        let told = succeed(node.command("meshctl").args(command));
        assert!(told.contains("ct150"), "{command:?}: {told}");
    }
    // In the file they stay.
    assert_eq!(mesh.entry("ct150").unwrap()["local"], true);
}

#[tokio::test]
async fn what_the_socket_does_not_have_is_refused_in_words() {
    let mesh = Mesh::new();
    let mut node = mesh.node("ct110").prepare().await;
    node.start_registryd().await;
    let ask = async |method: Method, path: &str, body: &str| {
        let request = web::request(method, path).body(web::full(body.to_owned())).unwrap();
        web::on_socket(&node.socket(), request).await.unwrap()
    };
    ask(Method::GET, "/v1/nothing", "").await.problem(404, "not_found");
    ask(Method::POST, "/mesh/nodes", "").await.problem(405, "method_not_allowed");
    for body in ["", "{", "{\"status\": \"offline\"}", "{\"status\": 1}"] {
        ask(Method::PUT, "/v1/status", body).await.problem(400, "bad_request");
    }
    // Only a sidecar passes on joins, and it says who the peer is.
    let join = json!({"name": "ct112", "host": "127.1.2.3", "port": 3000}).to_string();
    ask(Method::POST, "/api/mesh/join", &join).await.problem(403, "join_other_node");
}
