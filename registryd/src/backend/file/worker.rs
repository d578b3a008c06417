//! The two threads that touch the storage. A mount that hangs hangs them and nobody else; [`Watchdog`] tells.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{Amend, Stamp, Store, StoreError};
use crate::backend::{Backend, Failure, Job, Jobs, Ledger, Look, Observation, Wish};

/// How often the file is looked at. NFS tells nobody of changes, so asking is the only way that works everywhere.
const POLL: Duration = Duration::from_millis(250);
/// How much of a file that keeps changing each node reads per second: all nodes of a large mesh read from one server.
const READ_BYTES_PER_S: u64 = 128 * 1024;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often and how fast a half-written file is read again before the next look.
const REREADS: u32 = 4;
const REREAD_PAUSE: Duration = Duration::from_millis(15);
/// The least time between two writes for nothing but registrations.
const GATHER: Duration = Duration::from_millis(250);
/// How long one look may take, and one write with its wait for the lock, before the storage counts as hanging.
const READ_LIMIT: Duration = Duration::from_secs(5);
const WRITE_LIMIT: Duration = Duration::from_secs(20);

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
pub fn start(store: Store, ledger: Arc<impl Amend>) -> io::Result<(Backend, Watchdog)> {
    let activity = Arc::new(Activity {
        base: Instant::now(),
        reading_since_ms: AtomicU64::new(0),
        writing_since_ms: AtomicU64::new(0),
    });
    let (jobs, queue) = mpsc::channel();
    let reader = (store.clone(), ledger.clone(), activity.clone());
    spawn("registry-read", move || read_loop(&reader.0, &*reader.1, &reader.2))?;
    let watchdog = Watchdog { activity: activity.clone(), path: store.path().into() };
    spawn("registry-write", move || write_loop(&store, &*ledger, &activity, &queue))?;
    Ok((Backend { jobs: Jobs::Thread(jobs) }, watchdog))
}

/// Starts a thread with which the process ends if it panics: without it, registryd would be unable to read or write and not
/// say so. The service manager starts it again.
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

fn read_loop(store: &Store, ledger: &impl Amend, activity: &Activity) {
    let mut seen: Option<Stamp> = None;
    loop {
        let mut pause = POLL;
        let before = seen;
        let look = || -> Result<Option<_>, StoreError> {
            if before.is_some() && before == Some(store.stamp()?) {
                return Ok(None);
            }
            let last_good = ledger.last_good();
            let read = || match &last_good {
                Some(last_good) => store.read_after(last_good),
                None => store.read(),
            };
            let mut outcome = read();
            for _ in 0..REREADS {
                if !matches!(outcome, Err(StoreError::Content { .. })) {
                    break;
                }
                thread::sleep(REREAD_PAUSE);
                outcome = read();
            }
            outcome.map(Some)
        };
        match activity.during(&activity.reading_since_ms, look) {
            Ok(None) => {
                ledger.observed(Observation::Unchanged(Look { writes_pass: activity.writes_pass(), pause }));
            }
            Ok(Some((registry, stamp))) => {
                seen = Some(stamp);
                let fair = Duration::from_millis(stamp.length.saturating_mul(1000) / READ_BYTES_PER_S);
                pause = fair.clamp(POLL, LONGEST_PAUSE);
                let look = Look { writes_pass: activity.writes_pass(), pause };
                ledger.observed(Observation::Read { registry, look });
            }
            Err(error) => {
                seen = None;
                ledger.observed(Observation::Unreadable(failure(&error)));
            }
        }
        thread::sleep(pause);
    }
}

fn failure(error: &StoreError) -> Failure {
    Failure { sentence: error.to_string(), missing: error.is_missing() }
}

fn write_loop(store: &Store, ledger: &impl Amend, activity: &Activity, queue: &mpsc::Receiver<Job>) {
    let mut set_aside: Option<PathBuf> = None;
    let mut wrote_at: Option<Instant> = None;
    while let Ok(first) = queue.recv() {
        let mut jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
        // Registrations that come one after the other are entered together.
        while jobs.iter().all(|job| job.patient)
            && let Some(wait) = wrote_at.and_then(|at| GATHER.checked_sub(at.elapsed()))
            && let Ok(next) = queue.recv_timeout(wait)
        {
            jobs.push(next);
        }
        let mut wish = Wish::default();
        for job in &mut jobs {
            wish.beat |= job.wish.beat;
            wish.forget.append(&mut job.wish.forget);
        }
        let answer = activity.during(&activity.writing_since_ms, || {
            let started = Instant::now();
            let last_good = ledger.last_good();
            let mut held = None;
            let outcome = store.change(last_good.as_deref(), |registry| {
                let wanted = ledger.amend(registry, &wish);
                held = Some(registry.clone());
                wanted
            });
            if set_aside.as_ref().is_some_and(|path| !path.exists()) {
                set_aside = None;
                ledger.observed(Observation::AsideCleared);
            }
            match outcome {
                Ok(written) => {
                    set_aside = written.set_aside.clone().or(set_aside.take());
                    ledger.observed(Observation::Written {
                        registry: held,
                        replaced: written.replaced,
                        beat: wish.beat,
                        took: started.elapsed(),
                        set_aside: written.set_aside.map(|path| path.display().to_string()),
                    });
                    Ok(())
                }
                Err(error) => {
                    let failure = failure(&error);
                    let sentence = failure.sentence.clone();
                    ledger.observed(Observation::Unwritable(failure));
                    Err(sentence)
                }
            }
        });
        wrote_at = Some(Instant::now());
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
    pub async fn run(self, ledger: Arc<impl Ledger>) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            let reading = self.activity.longer_than(&self.activity.reading_since_ms, READ_LIMIT);
            let writing = self.activity.longer_than(&self.activity.writing_since_ms, WRITE_LIMIT);
            ledger.observed(Observation::Hangs((reading || writing).then(|| {
                format!(
                    "the storage of {} does not answer; does the mount hang? Continuing with the last good view",
                    self.path.display()
                )
            })));
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
        again.args(["--exact", "backend::file::worker::tests::a_panic_of_a_storage_thread_ends_the_process"]);
        let ended = again.env(INNER, "1").output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
    }
}
