//! The token that `meshctl invite` prints and `meshctl join` takes: everything that a host needs to find the CA's
//! process, to be sure that it is the right one, and to be let in once.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_ca::{Digest, sha256};
use mesh_shared::address::is_host;
use mesh_shared::certificate;
use mesh_shared::identity::Identity;
use zeroize::Zeroizing;

/// The form of token that is made and read.
const VERSION: u8 = 1;
/// Bytes of the digest that tells a mangled token.
const CHECK_BYTES: usize = 4;
/// Most addresses in a token.
pub const MAX_ADDRESSES: usize = 8;
/// The longest text that can be a token, in bytes.
const LONGEST: usize = 4096;

/// What an invitation is worth: 128 random bits. Never shown, zeroed when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; 16]>);

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Self, rustls::crypto::GetRandomFailed> {
        let mut bytes = Zeroizing::new([0; 16]);
        certificate::provider().secure_random.fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// As it goes over the wire.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.0))
    }

    /// As it came over the wire; `None` for anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// What the CA keeps of it.
    pub fn digest(&self) -> Digest {
        sha256(&*self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A host, by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name, or an address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Address {
    /// Reads `host`, `host:port`, `[address]:port`, or an address.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, TokenError> {
        let bad = || TokenError::Address(text.into());
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(bad)?)),
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        let given = port.map(|port| port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad));
        let port = given.unwrap_or(Ok(default_port))?;
        match is_host(host) {
            true => Ok(Self { host: host.into(), port }),
            false => Err(bad()),
        }
    }
}

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum TokenError {
    #[error(
        "the token is incomplete: characters are missing or changed. Copy the command that `meshctl invite` printed once \
         more, in one line"
    )]
    Mangled,
    #[error(
        "the token is of version {0}, which this meshctl does not know; install the version that the CA's host has"
    )]
    Version(u8),
    #[error(
        "{0:?} is not an address of the CA's process; expected a host name or an address, with or without :port"
    )]
    Address(String),
}

/// An invitation as text that can be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the certificate at the top of the CA's chain.
    pub root: Digest,
    /// What lets in, once.
    pub secret: Secret,
    /// For whom.
    pub identity: Identity,
    /// Where the CA's process listens, at least one.
    pub addresses: Vec<Address>,
}

impl Token {
    /// The text.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(vec![VERSION]);
        bytes.extend(self.root);
        bytes.extend(*self.secret.0);
        let fields =
            std::iter::once(self.identity.to_string()).chain(self.addresses.iter().map(Address::to_string));
        for field in fields {
            // None of them is longer: names have at most 128 characters, addresses 261 with port and brackets, and
            // those are cut where they are parsed.
            bytes.extend(u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
            bytes.extend(field.as_bytes());
        }
        let check = sha256(&bytes);
        bytes.extend(&check[..CHECK_BYTES]);
        Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(TokenError::Mangled);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Mangled)?);
        let whole = bytes
            .split_last_chunk::<CHECK_BYTES>()
            .filter(|(content, check)| sha256(content)[..CHECK_BYTES] == **check);
        let (content, _) = whole.ok_or(TokenError::Mangled)?;
        let mut rest = Reader(content);
        match rest.take(1)? {
            [VERSION] => {}
            other => return Err(TokenError::Version(other[0])),
        }
        let root = rest.take(32)?.try_into().map_err(|_| TokenError::Mangled)?;
        let secret = rest.take(16)?.try_into().map_err(|_| TokenError::Mangled)?;
        let secret = Secret(Zeroizing::new(secret));
        let identity = rest.text()?.parse().map_err(|_| TokenError::Mangled)?;
        let mut addresses = Vec::new();
        while !rest.0.is_empty() {
            let text = rest.text()?;
            let address = Address::parse(text, 0)?;
            // One way to write each: what was read is what was meant.
            if address.to_string() != text {
                return Err(TokenError::Address(text.into()));
            }
            addresses.push(address);
        }
        match (1..=MAX_ADDRESSES).contains(&addresses.len()) {
            true => Ok(Self { root, secret, identity, addresses }),
            false => Err(TokenError::Mangled),
        }
    }
}

/// What is left of a token's bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TokenError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TokenError::Mangled)?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self) -> Result<&'a str, TokenError> {
        let length = self.take(2)?;
        let length = u16::from_be_bytes([length[0], length[1]]);
        std::str::from_utf8(self.take(length.into())?).map_err(|_| TokenError::Mangled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            root: [7; 32],
            secret: Secret(Zeroizing::new([9; 16])),
            identity: "opus@ct112".parse().unwrap(),
            addresses: ["192.168.1.10:3005", "[fd00::1]:3005", "ca.example:4000"]
                .map(|text| Address::parse(text, 1).unwrap())
                .into(),
        }
    }

    #[test]
    fn a_token_says_what_was_put_in() {
        let text = token().to_text();
        assert_eq!(text.parse::<Token>().unwrap(), token());
        assert_eq!(format!(" {}\n", *text).parse::<Token>().unwrap(), token());
        assert_eq!(format!("{:?}", token().secret), "Secret(…)");
    }

    #[test]
    fn a_token_that_was_cut_or_changed_is_told() {
        let text = token().to_text();
        for end in 0..text.len() {
            assert_eq!(text[..end].parse::<Token>(), Err(TokenError::Mangled), "cut at {end}");
        }
        for at in 0..text.len() {
            let mut changed: Vec<u8> = text.bytes().collect();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(changed.parse::<Token>(), Err(TokenError::Mangled), "changed at {at}");
        }
        assert_eq!(format!("{}A", *text).parse::<Token>(), Err(TokenError::Mangled));
        let mut later = URL_SAFE_NO_PAD.decode(&*text).unwrap();
        later.truncate(later.len() - CHECK_BYTES);
        later[0] = 2;
        let check = sha256(&later);
        later.extend(&check[..CHECK_BYTES]);
        assert_eq!(URL_SAFE_NO_PAD.encode(later).parse::<Token>(), Err(TokenError::Version(2)));
    }

    #[test]
    fn addresses_are_hosts_with_ports() {
        for (text, shown) in [
            ("ca", "ca:3005"),
            ("10.0.0.1", "10.0.0.1:3005"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("fd00::1", "[fd00::1]:3005"),
            ("[fd00::1]", "[fd00::1]:3005"),
            ("[fd00::1]:9", "[fd00::1]:9"),
        ] {
            assert_eq!(Address::parse(text, 3005).unwrap().to_string(), shown);
        }
        for bad in ["", ":1", "a:0", "a:b", "a b", "http://a", "[::1]9", "a:70000"] {
            assert!(Address::parse(bad, 3005).is_err(), "{bad:?} was accepted");
        }
    }
}
