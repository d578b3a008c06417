//! The card by which an A2A agent of this host tells clients where it is: what it names must lead through the mesh, since
//! the card is read on other hosts too.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use mesh_client::Daemon;
use mesh_shared::LocalAddr;
use mesh_shared::config::Config;
use serde_json::Value;

/// Where A2A agents have their cards; the second is the older name.
const PATHS: [&str; 2] = ["/.well-known/agent-card.json", "/.well-known/agent.json"];
/// How long an agent may take for its card.
const LIMIT: Duration = Duration::from_secs(1);
/// Cards have some kilobytes.
const MAX_BYTES: usize = 256 << 10;
/// So many warnings are enough.
const MAX_WARNINGS: usize = 4;

/// What is wrong with the cards of this host's agents, each in a sentence. An agent without a card is not an A2A agent.
pub async fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, address) in config.proxy.backend.addresses() {
        for socket in address.socket_addrs() {
            let Some(card) = read(socket).await else { continue };
            let mut urls = Vec::new();
            collect(&card, &mut urls);
            let around = urls.into_iter().filter(|url| leads_around_the_mesh(url, config));
            let outbound = config.proxy.outbound.listen;
            warnings.extend(around.map(|url| {
                format!(
                    "the card of the agent at {address} ({key}) names {url}, where clients on other hosts find an agent of \
                     their own host, or nothing: it should name http://{outbound}/agents/<agent>/, which means the same on \
                     every host, or http://<agent>.agent.mesh/ where clients use http_proxy"
                )
            }));
            break;
        }
    }
    warnings.truncate(MAX_WARNINGS);
    warnings
}

async fn read(agent: SocketAddr) -> Option<Value> {
    let agent = Daemon::Agent(agent);
    for path in PATHS {
        let asked = agent.send_within(LIMIT, MAX_BYTES, Method::GET, path, HeaderMap::new(), Bytes::new());
        let answer = asked.await.ok()?;
        if answer.status == StatusCode::OK
            && let Ok(card) = serde_json::from_slice(&answer.body)
        {
            return Some(card);
        }
    }
    None
}

/// The addresses of the agent: `url` of the card itself and of its interfaces.
fn collect<'c>(card: &'c Value, urls: &mut Vec<&'c str>) {
    let interfaces = ["additionalInterfaces", "supportedInterfaces", "interfaces"];
    let interfaces = interfaces.iter().filter_map(|name| card.get(name)?.as_array()).flatten();
    let all = std::iter::once(card).chain(interfaces);
    for url in all.filter_map(|each| each.get("url")?.as_str()) {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
}

/// Whether `url` is on the loopback interface, and not this node's sidecar.
fn leads_around_the_mesh(url: &str, config: &Config) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let loopback = bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let outbound = &config.proxy.outbound;
    let listeners = outbound.listeners.iter().filter_map(|listener| match &listener.listen {
        LocalAddr::Tcp(address) => Some(address.socket_addr().port()),
        LocalAddr::Unix(_) => None,
    });
    let mut ours = listeners.chain([outbound.listen.socket_addr().port()]);
    loopback && !ours.any(|each| each == port)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_card_leads_through_the_mesh_or_not() {
        let yaml = "mesh: {enabled: true, node_name: ct110, tls: true}\n\
                    proxy: {outbound: {listeners: [{listen: '127.0.0.1:3111', agent: grok}]}}";
        let config = Config::parse(yaml).unwrap();
        for (url, around) in [
            ("http://127.0.0.1:8080/", true),
            ("http://localhost:8080/rpc", true),
            ("http://[::1]:8080/", true),
            ("http://127.0.0.1/", true),
            ("http://127.0.0.1:3001/agents/grok/rpc", false),
            ("http://127.0.0.1:3111/", false),
            ("http://grok.agent.mesh/", false),
            ("https://example.org/", false),
            ("not a url", false),
        ] {
            assert_eq!(leads_around_the_mesh(url, &config), around, "{url}");
        }
        let card = json!({"url": "a", "supportedInterfaces": [{"url": "b"}, {"url": "a"}, {"x": 1}], "skills": [{"url": "c"}]});
        let mut urls = Vec::new();
        collect(&card, &mut urls);
        assert_eq!(urls, ["a", "b"]);
    }
}
