//! The threads that carry requests.
//!
//! Each has a runtime, listeners and pools of its own: a request stays on the thread that accepted it, so that
//! nothing on its way is locked or woken across threads.

use std::io;
use std::thread::{self, JoinHandle};

use pingora_core::apps::ServerApp;
use pingora_core::server::ShutdownWatch;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::listener::Listener;

/// One thread before it starts.
pub struct Worker {
    runtime: Runtime,
    shutdown: ShutdownWatch,
}

impl Worker {
    /// A thread that serves until `shutdown`.
    ///
    /// # Errors
    /// The system gives no more of something.
    pub fn new(shutdown: ShutdownWatch) -> io::Result<Self> {
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()?, shutdown })
    }

    /// Will give what connects to `socket` to `app`.
    pub fn serve<A: ServerApp + Send + Sync + 'static>(&self, socket: Listener, app: A) {
        self.runtime.spawn(socket.serve(app, self.shutdown.clone()));
    }

    /// Runs until `end`; what is in flight then is cut off.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(self, number: usize, mut end: watch::Receiver<bool>) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // Ends too when the sender is gone.
            let _ = self.runtime.block_on(end.wait_for(|end| *end));
        })
    }
}
