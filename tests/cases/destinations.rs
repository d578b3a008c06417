//! Every way in which an agent names its destination on the outbound side.

use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::Mesh;
use mesh_tests::web;
use serde_json::json;

#[tokio::test]
async fn a_node_is_named_by_proxy_form_host_path_or_header() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &["scout"]).await;
    let node = mesh.start("ct110", "opus").await;
    let here = node.outbound().to_string();
    for (target, headers, arrives) in [
        ("http://ct150.mesh/a?b=c", vec![], "/a?b=c"),
        ("http://CT150.MESH:3000/a", vec![], "/a"),
        ("http://ct150.mesh", vec![], "/"),
        ("/a", vec![("host", "ct150.mesh")], "/a"),
        ("/a", vec![("host", "ct150.mesh:3001")], "/a"),
        ("/nodes/ct150/a/b?c", vec![("host", here.as_str())], "/a/b?c"),
        ("/nodes/ct150", vec![("host", "localhost:3001")], "/"),
        ("/nodes/ct150/nodes/x", vec![("host", "127.0.0.1")], "/nodes/x"),
        ("/a", vec![("host", "[::1]:3001"), ("x-mesh-node", "ct150")], "/a"),
        ("/a", vec![("host", here.as_str()), ("x-mesh-node", "ct150.mesh")], "/a"),
        ("/agents/scout/api/x?y", vec![("host", here.as_str())], "/api/x?y"),
        ("/a", vec![("host", here.as_str()), ("x-mesh-agent", "scout")], "/a"),
    ] {
        let answer = web::send(node.outbound(), web::get_with(target, &headers)).await;
        assert_eq!(answer.text(), format!("GET {arrives}"), "{target} {headers:?}");
        let seen = peer.example.last();
        let host = seen.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
        assert!(host.is_none_or(|host| host.starts_with("ct150.mesh")), "{:?}", seen.headers);
        assert!(seen.all("x-mesh-node").is_empty(), "{:?}", seen.headers);
    }
}

// The client blocks one thread, the peer needs another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_only_know_http_proxy_reach_the_mesh() {
    let mesh = Mesh::new();
    let (_peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    let proxy = format!("http://{}", node.outbound());
    // Python's own client, unchanged, as an agent would use it.
    let program = "import os,urllib.request;print(urllib.request.urlopen('http://ct150.mesh/from/python').read().decode())";
    let mut python = std::process::Command::new("python3");
    let told = mesh_tests::process::succeed(
        python.args(["-c", program]).env("http_proxy", &proxy).env_remove("no_proxy"),
    );
    assert_eq!(told.trim(), "GET /from/python");
}

#[tokio::test]
async fn a_listener_of_its_own_leads_to_its_node() {
    let mesh = Mesh::new();
    let (peer, _address) = mesh.peer("ct150", &["scout"]).await;
    let own = Loopback::take();
    let plan = mesh.node("ct110").with(|config| {
        config["proxy"]["outbound"]["listeners"] =
            json!([{"listen": own.port(3111).to_string(), "node": "ct150"}]);
    });
    let node = plan.start().await;
    assert_eq!(web::get(own.port(3111), "/a?b").await.text(), "GET /a?b");
    // Everything goes there, whatever the path looks like.
    assert_eq!(web::get(own.port(3111), "/nodes/ct110/x").await.text(), "GET /nodes/ct110/x");
    assert_eq!(web::get(own.port(3111), "/mesh/nodes").await.text(), "GET /mesh/nodes");
    web::send(own.port(3111), web::get_with("http://ct110.mesh/", &[])).await.problem(400, "bad_destination");
    web::send(own.port(3111), web::get_with("/", &[("origin", "http://x")]))
        .await
        .problem(403, "browser_request");
    assert_eq!(peer.example.requests().len(), 3);
    drop(node);
}

#[tokio::test]
async fn a_listener_for_an_agent_leads_to_wherever_it_is() {
    let mesh = Mesh::new();
    let (_far, _a) = mesh.peer("ct150", &["scout"]).await;
    let (_near, _b) = mesh.peer("ct151", &["scout", "other"]).await;
    let own = Loopback::take();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["outbound"]["listeners"] =
            json!([{"listen": own.port(3112).to_string(), "agent": "scout"}]);
    });
    let node = plan.start().await;
    for away in ["ct150", "ct151"] {
        let other = if away == "ct150" { "ct151" } else { "ct150" };
        for name in ["ct150", "ct151"] {
            let status = if name == away { "offline" } else { "online" };
            mesh.amend(name, |entry| entry["status"] = json!(status));
        }
        node.comes_to(&format!("/nodes/{away}/"), Some("node_offline")).await;
        node.comes_to(&format!("/nodes/{other}/"), None).await;
        for target in ["/a?b", "/agents/other/x", "/mesh/agents", "http://scout.agent.mesh/a"] {
            let answer = web::send(own.port(3112), web::get_with(target, &[])).await;
            let path = target.trim_start_matches("http://scout.agent.mesh");
            assert_eq!((answer.text(), answer.header("x-agent")), (format!("GET {path}"), Some(other)));
            assert_eq!(answer.header("x-mesh-served-by"), Some(other));
        }
        // Which agent is meant is the listener's to say.
        let answer = web::send(own.port(3112), web::get_with("/headers", &[("x-mesh-agent", "other")])).await;
        assert_eq!(answer.json()["x-mesh-agent"], "scout");
    }
    for target in ["http://other.agent.mesh/", "http://ct150.mesh/", "http://ct151.mesh/"] {
        web::send(own.port(3112), web::get_with(target, &[])).await.problem(400, "bad_destination");
    }
    mesh.amend("ct150", |entry| entry["status"] = json!("offline"));
    node.comes_to("/nodes/ct150/", Some("node_offline")).await;
    web::get(own.port(3112), "/").await.problem(503, "agent_offline");
}

#[tokio::test]
async fn an_agent_whose_node_cannot_be_reached_is_taken_from_another_through_a_listener() {
    let mesh = Mesh::new();
    let own = Loopback::take();
    let plan = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["outbound"]["listeners"] =
            json!([{"listen": own.port(3112).to_string(), "agent": "scout"}]);
    });
    let (node, mut one, mut two) =
        tokio::join!(plan.start(), mesh.start("ct111", "scout"), mesh.start("ct112", "scout"));
    node.reaches("ct111").await;
    node.reaches("ct112").await;
    one.proxy().kill();
    let mut kept = web::Connection::over(tokio::net::TcpStream::connect(own.port(3112)).await.unwrap()).await;
    for _ in 0..10 {
        let answer = kept.send(web::get_with("/x", &[])).await;
        assert_eq!((answer.text().as_str(), answer.header("x-mesh-served-by")), ("GET /x", Some("ct112")));
    }
    one.start_proxy().await;
    two.proxy().kill();
    mesh_tests::eventually("the first one serves again", async || {
        let answer = kept.send(web::get_with("/x", &[])).await;
        (answer.header("x-mesh-served-by") == Some("ct111")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_is_found_where_it_lives_the_local_one_first() {
    let mesh = Mesh::new();
    let (_peer, _address) = mesh.peer("ct150", &["scout", "opus"]).await;
    let node = mesh.start("ct110", "opus").await;
    node.reaches("ct150").await;
    let answer = node.get("/agents/scout/headers").await;
    assert_eq!(answer.json()["x-mesh-agent"], "scout", "the peer is not told which agent is meant");

    // opus lives here and there: here wins, and the request comes as the node's own.
    let answer = node.comes_to("/agents/opus/where", None).await;
    assert_eq!((answer.text().as_str(), answer.header("x-agent")), ("GET /where", Some("opus")));
    let seen = node.agent().last();
    assert_eq!(seen.all("x-mesh-peer-cn"), ["ct110"]);
    assert_eq!(seen.all("x-mesh-agent"), ["opus"]);
}

#[tokio::test]
async fn an_agent_that_is_offline_here_is_taken_from_where_it_is_online() {
    let mesh = Mesh::new();
    let (_far, _a) = mesh.peer("ct150", &["scout"]).await;
    let (_near, _b) = mesh.peer("ct151", &["scout"]).await;
    let node = mesh.start("ct110", "opus").await;
    for away in ["ct150", "ct151"] {
        for name in ["ct150", "ct151"] {
            let status = if name == away { "offline" } else { "online" };
            mesh.amend(name, |entry| entry["status"] = json!(status));
        }
        node.comes_to(&format!("/nodes/{away}/"), Some("node_offline")).await;
        let other = if away == "ct150" { "ct151" } else { "ct150" };
        node.comes_to(&format!("/nodes/{other}/"), None).await;
        assert_eq!(node.get("/agents/scout/").await.header("x-agent"), Some(other));
    }
}

#[tokio::test]
async fn a_node_reaches_itself_by_name() {
    let mesh = Mesh::new();
    let node = mesh.start("ct110", "opus").await;
    let answer = node.comes_to("/nodes/ct110/api/mesh/ping", None).await;
    assert_eq!(answer.json()["cn"], "ct110");
}

#[tokio::test]
async fn the_registry_is_read_under_mesh() {
    let mesh = Mesh::new();
    mesh.register("ct150", "127.1.2.3", 3000, &["scout", "opus"]);
    let node = mesh.start("ct110", "opus").await;
    let nodes = mesh_tests::eventually("both nodes", async || {
        let nodes = node.get("/mesh/nodes").await.json();
        (nodes.as_array().unwrap().len() == 2).then_some(nodes)
    })
    .await;
    let local: Vec<_> = nodes.as_array().unwrap().iter().filter(|node| node["local"] == true).collect();
    assert_eq!(local.len(), 1);
    assert_eq!(local[0]["name"], "ct110");
    let agents = node.get("/mesh/agents").await.json();
    let opus = agents.as_array().unwrap().iter().find(|agent| agent["name"] == "opus").unwrap();
    assert_eq!(opus["nodes"][0]["node"], "ct110", "the local one comes first: {opus}");
    assert_eq!(opus["nodes"][1]["node"], "ct150");
    let found = node.get("/mesh/nodes?agent=scout").await.json();
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["name"], "ct150");
}

#[tokio::test]
async fn h2c_is_understood_too() {
    let mesh = Mesh::new();
    let (_peer, _address) = mesh.peer("ct150", &[]).await;
    let node = mesh.start("ct110", "opus").await;
    let stream = tokio::net::TcpStream::connect(node.outbound()).await.unwrap();
    let mut h2 = web::h2(stream).await;
    for (target, arrives) in
        [("http://ct150.mesh/a?b", "/a?b"), ("http://localhost:3001/nodes/ct150/c", "/c")]
    {
        h2.ready().await.unwrap();
        let response = h2.send_request(web::get_with(target, &[])).await.unwrap();
        let answer = web::Answer::read(response).await.unwrap();
        assert_eq!(answer.text(), format!("GET {arrives}"));
    }
}
