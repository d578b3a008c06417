//! Where answers of an agent lead: back by the way on which the caller came, whatever the agent calls itself.

use mesh_tests::loopback::Loopback;
use mesh_tests::mesh::{Mesh, Node};
use mesh_tests::web::{self, Answer, Connection};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A way to name ct111 or its agent grok: a listener, what stands before the path, and headers.
struct Way {
    listener: std::net::SocketAddr,
    before: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

impl Way {
    async fn get(&self, path: &str) -> Answer {
        let target = format!("{}{path}", self.before);
        web::send(self.listener, web::get_with(&target, self.headers)).await
    }
}

/// Two nodes; the first one has a listener for the second one, and one for its agent. Also every way to name it.
async fn ways(mesh: &Mesh, host: &str) -> (Node, Node, Vec<Way>) {
    let own = Loopback::take();
    let one = mesh.node("ct110").agent("opus").with(|config| {
        config["proxy"]["outbound"]["listeners"] = json!([
            {"listen": own.port(3111).to_string(), "node": "ct111"},
            {"listen": own.port(3112).to_string(), "agent": "grok"},
        ]);
    });
    let two =
        mesh.node("ct111").agent("grok").with(|config| config["proxy"]["backend"]["host"] = json!(host));
    let (one, two) = tokio::join!(one.start(), two.start());
    one.reaches("ct111").await;
    let named: [(&str, &[_]); 8] = [
        ("http://ct111.mesh", &[]),
        ("http://grok.agent.mesh:80", &[]),
        ("", &[("host", "ct111.mesh:3001")]),
        ("", &[("host", "grok.agent.mesh")]),
        ("", &[("x-mesh-node", "ct111")]),
        ("", &[("x-mesh-agent", "grok")]),
        ("/nodes/ct111", &[]),
        ("/agents/grok", &[]),
    ];
    let outbound = one.outbound();
    let mut ways: Vec<_> =
        named.iter().map(|(before, headers)| Way { listener: outbound, before, headers }).collect();
    for port in [3111, 3112] {
        ways.push(Way { listener: own.port(port), before: "", headers: &[] });
    }
    (one, two, ways)
}

fn check(answer: &Answer, expected: &str, what: &str) {
    assert_eq!(answer.status, 307, "{what}: {}", answer.text());
    for name in ["location", "content-location"] {
        assert_eq!(answer.header(name), Some(expected), "{name}, {what}");
    }
}

#[tokio::test]
async fn what_leads_to_the_agent_itself_leads_back_the_way_the_caller_came() {
    for host in ["local", "peer"] {
        let mesh = Mesh::new();
        let (one, two, ways) = ways(&mesh, host).await;
        let backend = two.backend();
        for way in &ways {
            let prefix = if way.before.starts_with('/') { way.before } else { "" };
            let back = format!("{prefix}/target?a=b");
            let named = way.get("/headers").await.json()["x-forwarded-host"].as_str().unwrap().to_owned();
            for place in [
                format!("http://{backend}/target?a=b"),
                format!("http://{named}/target?a=b"),
                format!("https://{named}/target?a=b"),
                format!("//{named}/target?a=b"),
                "http://ct111.mesh/target?a=b".into(),
                "/target?a=b".into(),
                back.clone(),
            ] {
                let what = format!("{place} by {:?} {:?}, host {host}", way.before, way.headers);
                check(&way.get(&format!("/moved?{place}")).await, &back, &what);
            }
            // As a client would follow it, with the origin that it already uses.
            let follow = Way { before: if prefix.is_empty() { way.before } else { "" }, ..*way };
            assert_eq!(follow.get(&back).await.text(), "GET /target?a=b", "{:?}", way.before);
        }

        let mut stream = TcpStream::connect(one.outbound()).await.unwrap();
        stream.write_all(b"CONNECT ct111.mesh:80 HTTP/1.1\r\nhost: ct111.mesh:80\r\n\r\n").await.unwrap();
        web::read_head(&mut stream).await.unwrap();
        let request = web::get_with(&format!("/moved?http://{backend}/target"), &[("host", "ct111.mesh")]);
        check(&Connection::over(stream).await.send(request).await, "/target", "in a tunnel");
    }
}

#[tokio::test]
async fn what_leads_elsewhere_is_left_alone() {
    let mesh = Mesh::new();
    let (_one, two, ways) = ways(&mesh, "local").await;
    let other_port = two.port(8081);
    for way in &ways {
        for place in [
            "http://example.org/target",
            "https://example.org",
            "//example.org/target",
            "http://ct110.mesh/target",
            "http://opus.agent.mesh/target",
            "http://ct111.mesh.example.org/",
            "http://grok@example.org/",
            "ftp://ct111.mesh/",
            "target?a=b",
            "?a=b",
            &format!("http://{other_port}/target"),
        ] {
            let what = format!("{place} by {:?} {:?}", way.before, way.headers);
            check(&way.get(&format!("/moved?{place}")).await, place, &what);
        }
    }
}
