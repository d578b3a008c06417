//! What a daemon tells the service manager that started it (sd_notify(3)).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends a message of lines such as `READY=1`, where there is a service manager (`NOTIFY_SOCKET`). Never waits: a
/// service manager that reads nothing must not stop its services.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if the service manager has to read first; anything else if it is not there.
pub fn notify(message: &str) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let manager = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &manager).map(drop)
}
