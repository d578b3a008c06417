//! A connection to one member of an etcd cluster. Every call has a limit in time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use mesh_shared::config::{Endpoint, Etcd};
use tokio::time::timeout;

use super::Keys;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(4);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A connection that is silent is asked whether it is alive; etcd refuses to be asked more often than every 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Entries that are read at once: an answer has to stay below gRPC's 4 MiB.
const PAGE: i64 = 40;
const PAGE_OF_KEYS: i64 = 5000;

/// Why a call to etcd failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says it
pub enum Trouble {
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("it does not answer in {} s", CALL_LIMIT.as_secs())]
    Silent,
    #[error("it refuses this user to {action} {key}; grant it to its role (see deploy/docs/etcd.md)")]
    Denied { action: &'static str, key: String },
    #[error("its history before revision {0} was compacted")]
    Compacted(i64),
    #[error("the watch ended: {0}")]
    WatchEnded(String),
    #[error("{}", told(.0))]
    Call(Error),
}

/// What an error of the client says, with its causes and without its many wrappings.
fn told(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut cause = match error {
        Error::TransportError(error) => std::error::Error::source(error),
        Error::GRpcStatus(status) => std::error::Error::source(status),
        _ => None,
    };
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

impl Trouble {
    fn of(error: Error, action: &'static str, key: &str) -> Self {
        match &error {
            Error::GRpcStatus(status) if status.message().contains("permission denied") => {
                Self::Denied { action, key: key.into() }
            }
            _ => Self::Call(error),
        }
    }
}

/// A key and what it holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The content.
    pub value: Vec<u8>,
    /// When it was written last.
    pub revision: i64,
}

impl Held {
    fn of(kv: &KeyValue) -> Self {
        Self { value: kv.value().to_vec(), revision: kv.mod_revision() }
    }
}

/// A connection.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    keys: Keys,
}

/// All keys at one revision.
#[derive(Debug)]
pub struct Contents {
    /// The entries.
    pub entries: Vec<KeyValue>,
    /// The lives.
    pub lives: Vec<KeyValue>,
    /// The revision.
    pub revision: i64,
}

impl Connection {
    /// Connects to one member and authenticates. The files are read each time, so that they can be replaced.
    ///
    /// # Errors
    /// A file that cannot be read; a member that does not answer or refuses.
    pub async fn open(settings: &Etcd, endpoint: &Endpoint) -> Result<Self, Trouble> {
        let read = settings.clone();
        let tls = endpoint.has_tls();
        // They may be on a mount that hangs.
        let options = tokio::task::spawn_blocking(move || options(&read, tls));
        let options = match timeout(CALL_LIMIT, options).await {
            Ok(Ok(options)) => options?,
            Ok(Err(_)) | Err(_) => return Err(Trouble::Silent),
        };
        let connect = timeout(CALL_LIMIT, Client::connect([endpoint.as_str()], Some(options)));
        let client = connect.await.map_err(|_| Trouble::Silent)?.map_err(Trouble::Call)?;
        Ok(Self { client, keys: Keys::new(&settings.prefix) })
    }

    /// The revision of the store.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn revision(&mut self) -> Result<i64, Trouble> {
        let key = self.keys.entries();
        let answer = call(self.client.get(key.clone(), None))
            .await?
            .map_err(|error| Trouble::of(error, "read", &key))?;
        Ok(answer.header().map_or(0, |header| header.revision()))
    }

    /// What one key holds.
    ///
    /// # Errors
    /// The member does not answer or refuses.
    pub async fn get(&mut self, key: &str) -> Result<Option<Held>, Trouble> {
        let answer =
            call(self.client.get(key, None)).await?.map_err(|error| Trouble::of(error, "read", key))?;
        Ok(answer.kvs().first().map(Held::of))
    }

    /// Everything, as it was at one moment.
    ///
    /// # Errors
    /// The member does not answer or refuses.
    pub async fn contents(&mut self) -> Result<Contents, Trouble> {
        let (entries, revision) = self.range(&self.keys.entries(), PAGE, None).await?;
        let (lives, _) = self.range(&self.keys.lives(), PAGE_OF_KEYS, Some(revision)).await?;
        Ok(Contents { entries, lives, revision })
    }

    async fn range(
        &mut self,
        prefix: &str,
        page: i64,
        at: Option<i64>,
    ) -> Result<(Vec<KeyValue>, i64), Trouble> {
        let end = format!("{}0", prefix.trim_end_matches('/')); // the byte after "/"
        let (mut found, mut from, mut at) = (Vec::new(), prefix.as_bytes().to_vec(), at);
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(page);
            if let Some(at) = at {
                options = options.with_revision(at);
            }
            let answer = call(self.client.get(from, Some(options))).await?;
            let mut answer = answer.map_err(|error| Trouble::of(error, "read", prefix))?;
            let revision = at.unwrap_or_else(|| answer.header().map_or(0, |header| header.revision()));
            at = Some(revision);
            let more = answer.more();
            found.extend(answer.take_kvs());
            match found.last().filter(|_| more) {
                Some(last) => from = [last.key(), b"\0"].concat(),
                None => return Ok((found, revision)),
            }
        }
    }

    /// All changes from a revision on.
    ///
    /// # Errors
    /// The member does not answer or refuses.
    pub async fn watch(&mut self, from: i64) -> Result<WatchStream, Trouble> {
        let key = self.keys.all();
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        call(self.client.watch(key.clone(), Some(options)))
            .await?
            .map_err(|error| Trouble::of(error, "watch", &key))
    }

    /// A lease of at least that long, and how long it is.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), Trouble> {
        let seconds = ttl.as_millis().div_ceil(1000).clamp(1, 9_000_000_000);
        let granted = call(self.client.lease_grant(seconds as i64, None)).await?.map_err(Trouble::Call)?;
        Ok((granted.id(), Duration::from_secs(granted.ttl().unsigned_abs())))
    }

    /// Renews a lease; `false` if it has run out.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn renew(&mut self, lease: i64) -> Result<bool, Trouble> {
        // The client has read the first answer when it returns, and the stream of further ones is not needed.
        match call(self.client.lease_keep_alive(lease)).await? {
            Ok(_) => Ok(true),
            Err(Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(Trouble::Call(error)),
        }
    }

    /// Ends a lease; one that has ended already is as good.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn revoke(&mut self, lease: i64) -> Result<(), Trouble> {
        match call(self.client.lease_revoke(lease)).await? {
            Err(Error::GRpcStatus(status)) if status.message().contains("lease not found") => Ok(()),
            outcome => outcome.map(drop).map_err(Trouble::Call),
        }
    }

    /// Writes a key that is as it was at `before`, 0 where there was none; returns what it holds instead if it is not,
    /// else the new revision.
    ///
    /// # Errors
    /// The member does not answer or refuses.
    pub async fn replace(
        &mut self,
        key: &str,
        value: &[u8],
        before: i64,
    ) -> Result<Result<i64, Option<Held>>, Trouble> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, before);
        let txn = Txn::new()
            .when([unchanged])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, None)]);
        let done = call(self.client.txn(txn)).await?.map_err(|error| Trouble::of(error, "write", key))?;
        if done.succeeded() {
            return Ok(Ok(done.header().map_or(0, |header| header.revision())));
        }
        let held = done.op_responses().into_iter().find_map(|answer| match answer {
            TxnOpResponse::Get(answer) => answer.kvs().first().map(Held::of),
            _ => None,
        });
        Ok(Err(held))
    }

    /// Writes a key, bound to a lease. `false` if the lease has run out.
    ///
    /// # Errors
    /// The member does not answer or refuses.
    pub async fn put_leased(&mut self, key: &str, value: &str, lease: i64) -> Result<bool, Trouble> {
        match call(self.client.put(key, value, Some(PutOptions::new().with_lease(lease)))).await? {
            Ok(_) => Ok(true),
            Err(Error::GRpcStatus(status)) if status.message().contains("lease not found") => Ok(false),
            Err(error) => Err(Trouble::of(error, "write", key)),
        }
    }

    /// Takes a key out.
    ///
    /// # Errors
    /// The member does not answer or refuses.
    pub async fn delete(&mut self, key: &str) -> Result<(), Trouble> {
        call(self.client.delete(key, None)).await?.map(drop).map_err(|error| Trouble::of(error, "write", key))
    }
}

async fn call<R>(calling: impl Future<Output = R>) -> Result<R, Trouble> {
    timeout(CALL_LIMIT, calling).await.map_err(|_| Trouble::Silent)
}

fn options(settings: &Etcd, tls: bool) -> Result<ConnectOptions, Trouble> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_LIMIT)
        .with_keep_alive(PING.0, PING.1)
        // Without a leader nothing changes, and nobody would say so.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some((user, password_file)) = &settings.user {
        let password = read(password_file)?;
        let password = String::from_utf8_lossy(&password);
        options = options.with_user(user, password.trim_end_matches(['\r', '\n']));
    }
    if tls {
        let mut with = TlsOptions::new();
        if let Some(ca) = &settings.ca_path {
            with = with.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let Some((certificate, key)) = &settings.identity {
            with = with.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        options = options.with_tls(with);
    }
    Ok(options)
}

fn read(path: &Path) -> Result<Vec<u8>, Trouble> {
    fs::read(path).map_err(|source| Trouble::File { path: path.into(), source })
}
