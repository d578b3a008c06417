//! The threads that carry requests.
//!
//! Each has a runtime, listeners and pools of its own: a request stays on the thread that accepted it, so that
//! nothing on its way is locked or woken across threads.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use pingora_core::apps::ServerApp;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::drain::Drain;
use crate::listener::Listener;
use crate::pulse::Pulse;

/// One thread before it starts.
pub struct Worker {
    runtime: Runtime,
}

impl Worker {
    /// A thread that serves nothing yet.
    ///
    /// # Errors
    /// The system gives no more of something.
    pub fn new() -> io::Result<Self> {
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()? })
    }

    /// Will give what connects to `socket` to `app`, until `drain` begins.
    pub fn serve<A: ServerApp + Send + Sync + 'static>(&self, socket: Listener, app: A, drain: Drain) {
        self.runtime.spawn(socket.serve(app, drain));
    }

    /// Will run `task` alongside them, until it is aborted.
    pub fn run(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.runtime.spawn(task).abort_handle()
    }

    /// Runs until `end`; what is in flight then is cut off.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(
        self,
        number: usize,
        pulse: Arc<Pulse>,
        mut end: watch::Receiver<bool>,
    ) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            self.runtime.spawn(async move { pulse.beat(number).await });
            // Ends too when the sender is gone.
            let _ = self.runtime.block_on(end.wait_for(|end| *end));
        })
    }
}
