//! The thread that writes the log, and the queue before it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::line::Line;
use super::repeats;

/// Most bytes that wait to be written; twice as many while some are being written.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// What is kept of the buffers after a flood.
const KEPT_BYTES: usize = 1 << 16;
/// For so long lines are gathered after a write, which saves a switch of threads for each. Short enough for who looks on.
const GATHER: Duration = Duration::from_millis(50);

/// The log of this process, once it was started, and the form of its lines.
pub static STARTED: OnceLock<(&'static Queue, Line)> = OnceLock::new();

/// Standard output without the buffer and the lock that std puts before it: whoever exits takes that lock.
pub fn stdout() -> Box<dyn Write + Send> {
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(File::from(descriptor)),
        Err(_) => Box::new(io::stdout()),
    }
}

/// Lines that wait for the thread that writes them.
pub struct Queue {
    waiting: Mutex<Waiting>,
    dropped: AtomicU64,
    /// Wakes the thread.
    work: Condvar,
    /// Tells that lines were written.
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    count: u64,
    /// Lines that were dropped behind these, and of which no line tells yet.
    lost: u64,
    /// Whether the thread waits until it is woken.
    idle: bool,
    /// Whether somebody waits until everything is written.
    hurry: bool,
    /// Lines ever taken in, and of those the ones that were written or given up.
    taken: u64,
    done: u64,
}

impl Queue {
    /// Starts a thread that writes to `output` as long as the process lives.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(output: impl Write + Send + 'static, line: Line) -> io::Result<&'static Self> {
        let queue: &'static Self = Box::leak(Box::new(Self {
            waiting: Mutex::default(),
            dropped: AtomicU64::new(0),
            work: Condvar::new(),
            written: Condvar::new(),
        }));
        repeats::on_begin(|| queue.wake());
        thread::Builder::new().name("log".into()).spawn(move || queue.write_all_lines(output, line))?;
        Ok(queue)
    }

    /// Takes a line, or drops it. Never waits for the reader of the log.
    pub fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() + line.len() > MAX_WAITING_BYTES {
            waiting.lost += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.lines.extend_from_slice(line);
        waiting.count += 1;
        waiting.taken += 1;
        let wake = std::mem::take(&mut waiting.idle);
        drop(waiting);
        if wake {
            self.work.notify_one();
        }
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns once all lines so far are written or given up, but after `limit` at the latest.
    pub fn flush(&self, limit: Duration) {
        let mut waiting = self.lock();
        let end = waiting.taken;
        waiting.hurry = true;
        self.work.notify_one();
        let _ = self
            .written
            .wait_timeout_while(waiting, limit, |waiting| waiting.done < end)
            .map(|(mut waiting, _)| waiting.hurry = false);
    }

    /// Lets the thread look at the groups of repeated lines.
    fn wake(&self) {
        self.lock().idle = false;
        self.work.notify_one();
    }

    fn write_all_lines(&self, mut output: impl Write, line: Line) {
        let mut batch = Vec::new();
        loop {
            let (count, lost) = self.next_batch(&mut batch);
            if lost > 0 && tracing::enabled!(target: "Log", Level::WARN) {
                batch.extend_from_slice(line.lost(lost).as_bytes());
            }
            let failed = write_whole(&mut output, &batch).is_err();
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
            let mut waiting = self.lock();
            waiting.done += count;
            if failed {
                // Told when it works again.
                waiting.lost += count + lost;
                self.dropped.fetch_add(count, Ordering::Relaxed);
            }
            self.written.notify_all();
            if !waiting.hurry {
                // The next lines do not wake this thread; they are there when it comes back.
                let gathers =
                    |waiting: &mut Waiting| !waiting.hurry && waiting.lines.len() < MAX_WAITING_BYTES / 2;
                drop(self.work.wait_timeout_while(waiting, GATHER, gathers));
            }
        }
    }

    /// Waits for lines and swaps them for `batch`; returns how many they are, and how many were lost behind them.
    fn next_batch(&self, batch: &mut Vec<u8>) -> (u64, u64) {
        let mut waiting = loop {
            // Before the look at the groups: one that begins meanwhile is not missed.
            self.lock().idle = true;
            // Writes lines itself, so nothing is locked here.
            let next = repeats::sum_up(Instant::now());
            let waiting = self.lock();
            if !waiting.lines.is_empty() {
                break waiting;
            }
            let idle = |waiting: &mut Waiting| waiting.idle;
            // A lock that a panic poisoned is as good as any.
            let _ = match next {
                None => self.work.wait_while(waiting, idle).map(drop).map_err(drop),
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    self.work.wait_timeout_while(waiting, left, idle).map(drop).map_err(drop)
                }
            };
        };
        waiting.idle = false;
        std::mem::swap(&mut waiting.lines, batch);
        (std::mem::take(&mut waiting.count), std::mem::take(&mut waiting.lost))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all bytes, also to an output that somebody made non-blocking.
fn write_whole(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

impl<'a> MakeWriter<'a> for &'static Queue {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        Lines(self)
    }
}

/// Takes one line with each write.
pub struct Lines(&'static Queue);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::Format;
    use super::*;

    /// An output that writes as often as it is allowed to.
    struct Gate {
        allowed: Receiver<io::Result<()>>,
        written: Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.allowed.recv().unwrap()?;
            self.written.send(String::from_utf8(bytes.into()).unwrap()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn queue() -> (&'static Queue, Sender<io::Result<()>>, Receiver<String>) {
        let (allow, allowed) = channel();
        let (written, output) = channel();
        let line = Line { format: Format::Text, time: false };
        (Queue::start(Gate { allowed, written }, line).unwrap(), allow, output)
    }

    #[test]
    fn a_reader_that_stops_holds_nobody_up_and_is_told_what_it_missed() {
        let (queue, allow, output) = queue();
        let line = format!("{}\n", "x".repeat(999));
        // More than fits whether or not the thread took a part of it already.
        let pushed = 3 * MAX_WAITING_BYTES / line.len();
        for _ in 0..pushed {
            queue.push(line.as_bytes());
        }
        let lost = queue.dropped();
        assert!(lost > 0);
        queue.flush(Duration::from_millis(1));
        let mut told = String::new();
        allow.send(Ok(())).unwrap();
        while told.matches('x').count() < (pushed - lost as usize) * 999 {
            told += &output.recv().unwrap();
            allow.send(Ok(())).unwrap();
        }
        // Without a subscriber no WARN is enabled; the lines themselves are whole.
        assert!(told.lines().all(|line| line.len() == 999));
        queue.flush(Duration::from_secs(60));
        queue.push(b"now\n");
        assert_eq!(output.recv().unwrap(), "now\n");
    }

    #[test]
    fn flushing_waits_for_the_last_line() {
        let (queue, allow, output) = queue();
        for number in 0..100 {
            queue.push(format!("{number}\n").as_bytes());
            allow.send(Ok(())).unwrap();
        }
        queue.flush(Duration::from_secs(60));
        assert_eq!(output.try_iter().collect::<String>().lines().last(), Some("99"));
    }

    #[test]
    fn an_output_that_fails_is_tried_again_with_the_next_line() {
        let (queue, allow, output) = queue();
        allow.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        queue.push(b"lost\n");
        queue.flush(Duration::from_secs(60));
        allow.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        allow.send(Ok(())).unwrap();
        queue.push(b"written\n");
        assert_eq!(output.recv().unwrap(), "written\n");
    }
}
