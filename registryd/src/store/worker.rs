//! The two threads that touch the storage. A mount that hangs hangs them and nobody else; [`Watchdog`] tells.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Stamp, Store, StoreError};
use crate::state::State;

/// How often the file is looked at. NFS tells nobody of changes, so asking is the only way that works everywhere.
const POLL: Duration = Duration::from_millis(250);
/// How much of a file that keeps changing each node reads per second: all nodes of a large mesh read from one server.
const READ_BYTES_PER_S: u64 = 128 * 1024;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often and how fast a half-written file is read again before the next look.
const REREADS: u32 = 4;
const REREAD_PAUSE: Duration = Duration::from_millis(15);
/// How long one look may take, and one write with its wait for the lock, before the storage counts as hanging.
const READ_LIMIT: Duration = Duration::from_secs(5);
const WRITE_LIMIT: Duration = Duration::from_secs(20);

/// Writes on request. Requests that come while a write is under way become one.
#[derive(Debug, Clone)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    due: bool,
    done: oneshot::Sender<Result<(), String>>,
}

impl Writer {
    /// Brings the file up to date, with a new time stamp if the heartbeat is `due`.
    ///
    /// # Errors
    /// What went wrong, in a sentence. The state knows it already. A storage that hangs is an error only to a
    /// caller that sets a limit of its own.
    pub async fn write(&self, due: bool) -> Result<(), String> {
        let (done, outcome) = oneshot::channel();
        let stopped = || "the storage thread has stopped".to_owned();
        self.jobs.send(Job { due, done }).map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }
}

/// Since when each thread has been in one operation; 0 when it is not.
#[derive(Debug)]
struct Activity {
    base: Instant,
    reading_since_ms: AtomicU64,
    writing_since_ms: AtomicU64,
}

impl Activity {
    fn during<R>(&self, since: &AtomicU64, act: impl FnOnce() -> R) -> R {
        since.store(self.base.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let result = act();
        since.store(0, Ordering::Relaxed);
        result
    }

    /// Whether no write is being held up. One that is, by a lock or a mount, may be held up on every node.
    fn writes_pass(&self) -> bool {
        !self.longer_than(&self.writing_since_ms, Duration::from_secs(1))
    }

    fn longer_than(&self, since: &AtomicU64, limit: Duration) -> bool {
        let since = since.load(Ordering::Relaxed);
        since > 0 && self.base.elapsed() > Duration::from_millis(since) + limit
    }
}

/// Starts both threads. They end with the process.
///
/// # Errors
/// The system gives no more threads.
pub fn start(store: Store, state: Arc<State>) -> io::Result<(Writer, Watchdog)> {
    let activity = Arc::new(Activity {
        base: Instant::now(),
        reading_since_ms: AtomicU64::new(0),
        writing_since_ms: AtomicU64::new(0),
    });
    let (jobs, queue) = mpsc::channel();
    let reader = (store.clone(), state.clone(), activity.clone());
    spawn("registry-read", move || read_loop(&reader.0, &reader.1, &reader.2))?;
    let watchdog = Watchdog { activity: activity.clone(), path: store.path().into() };
    spawn("registry-write", move || write_loop(&store, &state, &activity, &queue))?;
    Ok((Writer { jobs }, watchdog))
}

/// Starts a thread with which the process ends if it panics: without it, registryd would be blind or dumb and not
/// say so. The service manager starts it anew.
fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    struct EndsTheProcess(&'static str);
    impl Drop for EndsTheProcess {
        fn drop(&mut self) {
            if thread::panicking() {
                tracing::error!(target: "Registry", "registryd stops: its thread {} failed, which is a bug", self.0);
                std::process::abort();
            }
        }
    }
    thread::Builder::new().stack_size(512 * 1024).name(name.into()).spawn(move || {
        let _guard = EndsTheProcess(name);
        run();
    })
}

fn read_loop(store: &Store, state: &State, activity: &Activity) {
    let mut seen: Option<Stamp> = None;
    loop {
        let mut pause = POLL;
        let before = seen;
        let look = || -> Result<Option<_>, StoreError> {
            if before.is_some() && before == Some(store.stamp()?) {
                return Ok(None);
            }
            let mut outcome = store.read();
            for _ in 0..REREADS {
                if !matches!(outcome, Err(StoreError::Content { .. })) {
                    break;
                }
                thread::sleep(REREAD_PAUSE);
                outcome = store.read();
            }
            outcome.map(Some)
        };
        match activity.during(&activity.reading_since_ms, look) {
            Ok(None) => state.file_unchanged(activity.writes_pass(), pause),
            Ok(Some((registry, stamp))) => {
                seen = Some(stamp);
                let fair = Duration::from_millis(stamp.length.saturating_mul(1000) / READ_BYTES_PER_S);
                pause = fair.clamp(POLL, LONGEST_PAUSE);
                state.file_read(registry, activity.writes_pass(), pause);
            }
            Err(error) => {
                seen = None;
                state.file_unreadable(&error);
            }
        }
        thread::sleep(pause);
    }
}

fn write_loop(store: &Store, state: &State, activity: &Activity, queue: &mpsc::Receiver<Job>) {
    let mut set_aside: Option<PathBuf> = None;
    while let Ok(first) = queue.recv() {
        let jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
        let due = jobs.iter().any(|job| job.due);
        let outcome = activity.during(&activity.writing_since_ms, || {
            let last_good = state.last_good();
            let mut held = None;
            let outcome = store.change(last_good.as_deref(), |registry| {
                let wanted = state.amend(registry, due);
                held = Some(registry.clone());
                wanted
            });
            if set_aside.as_ref().is_some_and(|path| !path.exists()) {
                set_aside = None;
                state.solved("corrupt");
            }
            state.write_ended(&outcome, held, due);
            outcome
        });
        let answer = match outcome {
            Ok(written) => {
                set_aside = written.set_aside.or(set_aside);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        };
        for job in jobs {
            // Whoever asked may have stopped waiting.
            let _ = job.done.send(answer.clone());
        }
    }
}

/// Tells whether the storage hangs.
#[derive(Debug)]
pub struct Watchdog {
    activity: Arc<Activity>,
    path: PathBuf,
}

impl Watchdog {
    /// Looks once a second, for as long as the daemon runs.
    pub async fn run(self, state: Arc<State>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            let reading = self.activity.longer_than(&self.activity.reading_since_ms, READ_LIMIT);
            let writing = self.activity.longer_than(&self.activity.writing_since_ms, WRITE_LIMIT);
            match reading || writing {
                true => state.problem("hang", format!(
                    "the storage of {} does not answer; does the mount hang? Going on with the last good view",
                    self.path.display()
                )),
                false => state.solved("hang"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    /// Runs itself in a process of its own, which has to end.
    #[test]
    fn a_panic_of_a_storage_thread_ends_the_process() {
        const INNER: &str = "MESH_TEST_PANIC";
        if std::env::var_os(INNER).is_some() {
            let _ = super::spawn("registry-test", || panic!("on purpose")).unwrap().join();
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "store::worker::tests::a_panic_of_a_storage_thread_ends_the_process"]);
        let ended = again.env(INNER, "1").output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
    }
}
