//! Listening unix sockets: nobody can connect before the permissions are set, and a socket in use is never replaced.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

/// The system takes less where it allows less.
const BACKLOG: i32 = 4096;

/// Why a socket cannot listen at a path.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is left alone.
    #[error("something that is not a socket is there; move it away, or choose another path")]
    NotASocket,
    /// It is left alone.
    #[error("another process listens there")]
    InUse,
    /// What the system says.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> Self {
        let kind = match error {
            ListenError::Io(error) => return error,
            ListenError::NotASocket => ErrorKind::AlreadyExists,
            ListenError::InUse => ErrorKind::AddrInUse,
        };
        Self::new(kind, error)
    }
}

/// Makes a socket at `path` with these permissions (chmod(2); to connect is to write), of this group if one is given. It
/// does not block, and is not passed on to other programs. A socket on which nobody listens any more is replaced.
///
/// # Errors
/// Something else is there, or a process that listens; no access to the folder; a group that cannot be given.
pub fn listen(path: &Path, mode: u32, group: Option<u32>) -> Result<UnixListener, ListenError> {
    make_room(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
    let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
    bind(&socket, &address).map_err(io::Error::from)?;
    // Connections are refused until it listens.
    if let Some(group) = group {
        chown(path, None, Some(group))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
    Ok(socket.into())
}

fn make_room(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => Err(ListenError::NotASocket),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
            Err(error) => Err(error.into()),
            Ok(_) => Err(ListenError::InUse),
        },
    }
}
