//! The DNS server that nodes under test ask for `.mesh` names, so that no test depends on the host's.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// The length of a message before its question.
const HEADER: usize = 12;

type Names = HashMap<String, Vec<IpAddr>>;

/// Answers A and AAAA queries from a table, everything else with NXDOMAIN (or no data for known names).
pub struct Dns {
    addr: SocketAddr,
    names: Arc<Mutex<Names>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Dns {
    /// Listens on `addr`.
    pub fn start(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind(addr).unwrap();
        let names: Arc<Mutex<Names>> = Arc::default();
        let table = Arc::downgrade(&names);
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let questions = asked.clone();
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Some(table) = table.upgrade() else { return };
                let query = &buffer[..length];
                questions.lock().unwrap().extend(name_asked(query).map(|(name, _)| name));
                if let Some(answer) = answer(query, &table.lock().unwrap()) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { addr, names, asked }
    }

    /// The names that were asked for, each as often as it was.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Gives a name an address.
    pub fn set(&self, name: &str, ip: impl Into<IpAddr>) {
        self.set_all(name, &[ip.into()]);
    }

    /// Gives a name several addresses, in this order.
    pub fn set_all(&self, name: &str, ips: &[IpAddr]) {
        self.names.lock().unwrap().insert(name.to_ascii_lowercase(), ips.into());
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        // Wakes the thread, which then sees that nobody is left.
        self.names = Arc::default();
        if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
            let _ = socket.send_to(b"bye", self.addr);
        }
    }
}

/// The name in a question, in lower case, and where it ends.
fn name_asked(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}

/// RFC 1035, section 4: the question comes back with a header of ours and the addresses.
fn answer(query: &[u8], names: &Names) -> Option<Vec<u8>> {
    const A: u16 = 1;
    const AAAA: u16 = 28;
    const NXDOMAIN: u8 = 3;
    let (name, at) = name_asked(query)?;
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(HEADER..at + 4)?;
    let known = names.get(&name);
    let asked = |ip: &&IpAddr| kind == if ip.is_ipv4() { A } else { AAAA };
    let addresses: Vec<&IpAddr> = known.into_iter().flatten().filter(asked).collect();
    let code = if known.is_some() { 0 } else { NXDOMAIN };
    // Authoritative answer, recursion available.
    let mut answer = vec![query[0], query[1], 0x85, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0];
    answer.extend_from_slice(question);
    for ip in addresses {
        let octets = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // The question's name, class IN, for a second.
        answer.extend_from_slice(&[0xc0, 0x0c, 0, kind as u8, 0, 1, 0, 0, 0, 1, 0, octets.len() as u8]);
        answer.extend_from_slice(&octets);
    }
    Some(answer)
}
