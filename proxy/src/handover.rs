//! One process takes the listening sockets over from another one, so that an upgrade refuses no connection.
//!
//! The process that runs starts its own program again, which may be a newer one by now, with one end of a
//! socketpair as standard input. The sockets pass through it as descriptors (unix(7), SCM_RIGHTS), then words:
//!
//! | From | Line | |
//! |---|---|---|
//! | old | `["0.0.0.0:3000",…]` | where the configuration of the old one wanted each socket that comes along |
//! | new | `ready` or `failed <why>` | it accepts connections; or it ends |
//! | old | `go` | the service manager knows the new one, and the old one accepts nothing any more |
//!
//! Not by pingora's transfer socket, which needs a path that both know and has the new process wait for as long as
//! an old one does not come; not by inheritance as LISTEN_FDS has it, which needs descriptors of fixed numbers, the
//! number of a process that does not exist yet, and `unsafe` code. The socketpair is nobody else's, its end is the
//! end of the process that has it, and a failure is told in words.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use mesh_shared::config;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::Socket;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::listener::Address;
use crate::sockets::Given;
use crate::supervisor;

/// Tells a process that its parent hands over: the parent's process id.
const PREDECESSOR: &str = "MESH_PROXY_PREDECESSOR";
/// How long the new process may take until it is ready. It reads certificates, which may be on a slow mount.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long the new process waits for each word of the old one, which says them at once.
const WORD_LIMIT: Duration = Duration::from_secs(10);
/// The system passes a few more descriptors than this at a time.
const MAX_SOCKETS: usize = 250;
/// Far more than the addresses of so many sockets take.
const MAX_LINE_BYTES: usize = 32 * 1024;

const READY: &str = "ready";
const FAILED: &str = "failed ";
const GO: &str = "go";

/// Why an upgrade did not come about.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The program cannot be executed.
    #[error("cannot start {}: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It said what it lacks.
    #[error("{} cannot work: {reason}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// Its own words.
        reason: String,
    },
    /// It ended without a word.
    #[error(
        "{} ended before it was ready, with {status}{}",
        path.display(),
        match status.code() {
            Some(code) if code == i32::from(config::EXIT_CODE) => ": its configuration cannot work, see its lines above",
            _ => "",
        }
    )]
    Ended {
        /// The program.
        path: PathBuf,
        /// How.
        status: ExitStatus,
    },
    /// It took too long.
    #[error("{} was not ready within {} s and was ended", path.display(), READY_LIMIT.as_secs())]
    Late {
        /// The program.
        path: PathBuf,
    },
    /// The sockets cannot be passed.
    #[error("cannot hand over the listening sockets: {0}")]
    Transfer(#[source] io::Error),
}

/// How this process was started, to start the same program again.
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// To be called soon: once the file is replaced, the system names only the one that is gone.
    ///
    /// # Errors
    /// The system does not know the path of this program.
    pub fn of_this_process() -> io::Result<Self> {
        let running = env::current_exe()?;
        let mut arguments = env::args_os();
        // A link stays a link: it may lead to another version by then.
        let path = arguments
            .next()
            .map(PathBuf::from)
            .filter(|named| named.components().count() > 1)
            .and_then(|named| std::path::absolute(named).ok())
            .filter(|named| named.canonicalize().is_ok_and(|real| real == running))
            .unwrap_or(running);
        Ok(Self { path, arguments: arguments.collect() })
    }

    /// Starts the program again and gives it these sockets.
    ///
    /// # Errors
    /// It cannot be executed, or the sockets cannot be passed.
    pub async fn start_again(
        &self,
        sockets: &[(Address, BorrowedFd<'_>)],
    ) -> Result<Successor, UpgradeError> {
        let (ours, theirs) = UnixStream::pair().map_err(UpgradeError::Transfer)?;
        // Before the child exists, so that there is none if this fails.
        pass(&ours, sockets).map_err(UpgradeError::Transfer)?;
        ours.set_nonblocking(true).map_err(UpgradeError::Transfer)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(UpgradeError::Transfer)?;
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .env(PREDECESSOR, std::process::id().to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        for variable in supervisor::ENVIRONMENT {
            command.env_remove(variable);
        }
        let child =
            command.spawn().map_err(|source| UpgradeError::Start { path: self.path.clone(), source })?;
        Ok(Successor { path: self.path.clone(), child, channel: BufReader::new(ours) })
    }
}

/// The process that is to replace this one.
pub struct Successor {
    path: PathBuf,
    child: Child,
    channel: BufReader<tokio::net::UnixStream>,
}

impl Successor {
    /// Its process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns when it accepts connections.
    ///
    /// # Errors
    /// It does not, and has been ended.
    pub async fn ready(&mut self) -> Result<(), UpgradeError> {
        let path = self.path.clone();
        let mut line = String::new();
        let said = timeout(READY_LIMIT, self.channel.read_line(&mut line)).await;
        let line = line.trim_end();
        if line == READY {
            return Ok(());
        }
        if said.is_err() {
            self.end().await;
            return Err(UpgradeError::Late { path });
        }
        if let Some(reason) = line.strip_prefix(FAILED) {
            let reason = reason.to_owned();
            self.end().await;
            return Err(UpgradeError::Failed { path, reason });
        }
        // The channel was closed, so the process is at its end.
        match timeout(WORD_LIMIT, self.child.wait()).await {
            Ok(Ok(status)) => Err(UpgradeError::Ended { path, status }),
            Ok(Err(source)) => Err(UpgradeError::Start { path, source }),
            Err(_) => {
                self.end().await;
                Err(UpgradeError::Late { path })
            }
        }
    }

    /// Tells it that it is the service now.
    pub async fn go(&mut self) {
        // Without an answer: a process that has just ended shows in `ended`.
        let _ = self.channel.get_mut().write_all(format!("{GO}\n").as_bytes()).await;
    }

    /// Returns with its end.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends it.
    pub async fn end(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill().await;
    }
}

/// The process that this one is to replace.
pub struct Predecessor {
    channel: UnixStream,
}

impl Predecessor {
    /// The parent, if it started this process to hand over.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn of_this_process() -> io::Result<Option<Self>> {
        // A variable that was passed on by chance names somebody else.
        let named = env::var(PREDECESSOR).ok().and_then(|pid| pid.parse().ok());
        if named != Some(parent_id()) {
            return Ok(None);
        }
        let channel = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        channel.set_read_timeout(Some(WORD_LIMIT))?;
        Ok(Some(Self { channel }))
    }

    /// Takes the listening sockets.
    ///
    /// # Errors
    /// The predecessor is gone or says something else.
    pub fn sockets(&mut self) -> io::Result<Vec<Given>> {
        let mut line = vec![0; MAX_LINE_BYTES];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.channel, &mut [IoSliceMut::new(&mut line)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut sockets = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors.map(Socket::from));
            }
        }
        let addresses: Vec<Address> = serde_json::from_slice(&line[..received.bytes])?;
        if addresses.len() != sockets.len() {
            let (addresses, sockets) = (addresses.len(), sockets.len());
            return Err(io::Error::other(format!("{sockets} sockets came with {addresses} addresses")));
        }
        let given = |(address, socket)| Given { socket, name: String::new(), address };
        Ok(addresses.into_iter().zip(sockets).map(given).collect())
    }

    /// Says that this process accepts connections, and waits until it is the service. At the latest when the
    /// predecessor has ended, it is.
    pub fn take_over(mut self) {
        let mut word = [0; GO.len() + 1];
        // A predecessor that is gone needs no telling, and leaves nothing to wait for.
        let _ = writeln!(self.channel, "{READY}").and_then(|()| self.channel.read_exact(&mut word));
    }

    /// Says why this process cannot work.
    pub fn give_up(mut self, reason: &str) {
        let reason = reason.replace('\n', " ");
        let _ = writeln!(self.channel, "{FAILED}{reason}");
    }
}

/// Sends the sockets and the addresses at which they were wanted.
fn pass(channel: &UnixStream, sockets: &[(Address, BorrowedFd<'_>)]) -> io::Result<()> {
    if sockets.len() > MAX_SOCKETS {
        let many = sockets.len();
        return Err(io::Error::other(format!("{many} are more than {MAX_SOCKETS}; restart instead")));
    }
    let (addresses, descriptors): (Vec<_>, Vec<_>) =
        sockets.iter().map(|(address, descriptor)| (address, *descriptor)).unzip();
    let mut line = serde_json::to_vec(&addresses)?;
    line.push(b'\n');
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptors"));
    }
    let sent = sendmsg(channel, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    match sent == line.len() {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_arrive_with_the_places_that_they_were_for() {
        let (old, new) = UnixStream::pair().unwrap();
        let listeners =
            [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let places = [
            Address::Tcp("[::]:3000".parse().unwrap()),
            Address::Unix("/run/mesh-proxy/outbound.sock".into()),
        ];
        let sockets: Vec<_> = places.iter().cloned().zip(listeners.iter().map(AsFd::as_fd)).collect();
        pass(&old, &sockets).unwrap();
        let given = Predecessor { channel: new }.sockets().unwrap();
        for ((given, place), listener) in given.iter().zip(places).zip(&listeners) {
            assert_eq!(given.address, place);
            let address = given.socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(address, listener.local_addr().unwrap());
        }
        assert_eq!(given.len(), 2);
    }
}
