//! `telemetry`: where traces go, of both daemons.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::yaml::Section;

/// How long the collector may take to answer.
const TIMEOUT_MS: u64 = 10_000;
/// Spans that wait for the collector.
const MAX_QUEUE: u64 = 2048;

/// Where traces go.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    /// The collector; `None`: nothing is recorded.
    pub otlp: Option<Otlp>,
}

/// How a collector is reached. What a file of headers says never goes over the network in the clear.
#[derive(Debug, Clone)]
pub struct Otlp {
    /// Where it listens.
    pub endpoint: Collector,
    /// The CA certificates that vouch for it; always there with TLS.
    pub ca_path: Option<PathBuf>,
    /// The file of the headers that it wants, one a line.
    pub headers_file: Option<PathBuf>,
    /// The share of the traces begun here that are recorded, from 0 to 1.
    pub sample_ratio: f64,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Spans that wait for it; more are dropped.
    pub max_queue: usize,
}

/// `http://127.0.0.1:4318`: where OTLP over HTTP is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Collector {
    /// Whether it is reached with TLS.
    pub fn has_tls(&self) -> bool {
        self.tls
    }

    /// Its name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where traces are sent (OTLP/HTTP, "Endpoint URLs").
    pub fn traces_url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        format!("{scheme}://{open}{}{close}:{}{}/v1/traces", self.host, self.port, self.path)
    }

    fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        address.map_or(self.host == "localhost", |address| address.to_canonical().is_loopback())
    }
}

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected a URL such as http://127.0.0.1:4318, found {text:?}");
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(expected()),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let path = path.trim_end_matches('/');
        if path.ends_with("/v1/traces") {
            return Err(format!("expected a URL without /v1/traces, which is added, found {text:?}"));
        }
        let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(expected)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_ipv6 = bare.unwrap_or(host).parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
        let is_host = is_ipv6 || crate::address::is_host(host) || host.parse::<IpAddr>().is_ok();
        let clean = path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        if bare.is_some() != is_ipv6 || !is_host || !clean {
            return Err(expected());
        }
        Ok(Self { tls, host: bare.unwrap_or(host).into(), port, path: path.into() })
    }
}

pub(super) fn read(section: Section<'_>) -> Telemetry {
    let has_otlp = section.has("otlp");
    let otlp = section.section("otlp");
    let otlp_read = has_otlp.then(|| otlp_section(&otlp)).flatten();
    otlp.finish();
    section.finish();
    Telemetry { otlp: otlp_read }
}

fn otlp_section(section: &Section<'_>) -> Option<Otlp> {
    let endpoint: Option<Collector> = section.parsed("endpoint");
    let path = |key| section.string(key).map(PathBuf::from);
    let (ca_path, headers_file) = (path("ca_path"), path("headers_file"));
    let sample_ratio = section.parsed_number("sample_ratio").map_or(1.0, |Ratio(ratio)| ratio);
    let timeout = section.number("timeout_ms").unwrap_or(TIMEOUT_MS);
    let max_queue = section.number("max_queue").unwrap_or(MAX_QUEUE);
    if !section.has("endpoint") {
        section.mistake_here("needs endpoint, as in http://127.0.0.1:4318");
    }
    let endpoint = endpoint?;
    if endpoint.has_tls() && ca_path.is_none() {
        section.mistake(
            "ca_path",
            "is missing: the CA certificates that the collector's certificate chains to; those of the system often are in \
             /etc/ssl/certs/ca-certificates.crt",
        );
    }
    if !endpoint.has_tls() && ca_path.is_some() {
        section.mistake("ca_path", "is of no use with an http endpoint; write https in endpoint");
    }
    if !endpoint.has_tls() && !endpoint.is_loopback() && headers_file.is_some() {
        let why = format!("would send the headers in the clear to {}; write https there", endpoint.host());
        section.mistake("headers_file", why);
    }
    Some(Otlp {
        endpoint,
        ca_path,
        headers_file,
        sample_ratio,
        timeout: Duration::from_millis(timeout),
        max_queue: max_queue as usize,
    })
}

/// A number from 0 to 1.
struct Ratio(f64);

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or_else(|| format!("expected a number from 0 to 1, found {text:?}"))
    }
}
