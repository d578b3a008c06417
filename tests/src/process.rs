//! Child processes: the workspace's own binaries, their logs, their end.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use crate::{DEADLINE, eventually};

/// The path of one of the workspace's binaries, built now if it is not fresh.
///
/// Cargo tells a test only of its own package's binaries, so they are built here, once a process, with the
/// profile and folder that the test itself was built with. `MESH_BIN_DIR` names a folder to use as it is.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build).join(name)
}

fn build() -> PathBuf {
    if let Some(folder) = env::var_os("MESH_BIN_DIR") {
        return folder.into();
    }
    let test = env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).expect("a test lies in <target>/<profile>/deps");
    let (profile, features): (_, &[_]) = match folder.file_name().and_then(OsStr::to_str) {
        // As tests/run.sh has built them.
        Some("debug") => ("dev", &["--no-default-features"]),
        Some(profile) => (profile, &[]),
        None => panic!("{} has no profile", test.display()),
    };
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile])
        .args(features)
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success(), "the binaries under test do not build");
    folder.to_owned()
}

/// A command for one of the workspace's binaries, without this process's own settings for them.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    command
        .env_remove("MESH_CONFIG")
        .env_remove("MESH_LOG")
        .env_remove("MESH_LOG_FORMAT")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Puts a program at `to`, which everybody may run, at once.
///
/// Another process writes it. Were it written here, a child that another thread is just starting could hold it open for
/// writing, and running it would fail with "Text file busy".
pub fn install(from: &Path, to: &Path) {
    succeed(Command::new("install").args(["-m", "0755"]).args([from, to]));
}

/// Runs a command that must succeed and returns its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// What a file of `/proc` says of each thread of a process.
pub fn of_threads(pid: u32, file: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One may end meanwhile.
    threads
        .map(|thread| std::fs::read_to_string(thread.unwrap().path().join(file)).unwrap_or_default())
        .collect()
}

/// The CPU time that a process has used, in hundredths of a second.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may contain anything: utime and stime are the 12th and 13th (proc(5)).
    let times = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    times.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Sends a signal to a process that this test started, or that such a one started.
pub fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: a plain system call.
    #[allow(unsafe_code, reason = "std can only send SIGKILL")]
    let sent = unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) };
    assert_eq!(sent, 0, "signal {signal} to process {pid}");
}

/// One thread of a child, stopped while the others run.
pub struct StoppedThread(libc::pid_t);

impl StoppedThread {
    /// Stops the thread of this name, until the value is dropped. Belongs to the thread of the test that made it.
    pub fn named(pid: u32, name: &str) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let mut threads = threads.map(|thread| thread.unwrap().path());
        let is_it = |path: &PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let path = threads.find(is_it).unwrap_or_else(|| panic!("process {pid} has no thread {name}"));
        let thread: libc::pid_t = path.file_name().and_then(OsStr::to_str).unwrap().parse().unwrap();
        // SAFETY: plain system calls without pointers that are followed.
        #[allow(unsafe_code, reason = "nothing else stops a single thread of another process")]
        unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, thread, none, none), 0, "seize {name}");
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none), 0, "stop {name}");
            let mut status = 0;
            assert_eq!(libc::waitpid(thread, &raw mut status, libc::__WALL), thread, "wait for {name}");
        }
        Self(thread)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: a plain system call without pointers that are followed.
        #[allow(unsafe_code, reason = "see above")]
        // The process may be gone.
        let _ = unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

/// Bytes as text, for assertions.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How long the last lines of a program that has ended may take.
const LAST_LINES: Duration = Duration::from_secs(2);

/// A running program whose output is captured. It is killed when this value goes, or its test's thread.
pub struct Daemon {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// Counts the lines.
    grown: watch::Receiver<usize>,
}

impl Daemon {
    /// Starts `command`; `name` stands before its lines when a test fails.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_this_thread(command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (grow, grown) = watch::channel(0);
        let grow = Arc::new(grow);
        collect(child.stdout.take().unwrap(), lines.clone(), grow.clone());
        collect(child.stderr.take().unwrap(), lines.clone(), grow);
        Self { name: name.into(), child, lines, grown }
    }

    /// Starts `command` with a pipe for its output that is full and that nobody reads yet: whatever writes to it waits.
    pub fn start_blocked(name: &str, command: &mut Command) -> (Self, Unread) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        // SAFETY: a plain system call on a descriptor that is open.
        #[allow(unsafe_code, reason = "std does not tell how much a pipe holds")]
        let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) };
        let mut filling = vec![b'\n'; usize::try_from(size).unwrap()];
        filling[..6].copy_from_slice(b"filled");
        writer.write_all(&filling).unwrap();
        command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer);
        die_with_this_thread(command);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The command keeps its copies of the pipe's end; the reader would never see the end otherwise.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        (Self { name: name.into(), child, lines: Arc::default(), grown: watch::channel(0).1 }, Unread(reader))
    }

    /// Starts `command` with an output that nobody reads: each write to it fails.
    pub fn start_unread(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_this_thread(command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        drop((child.stdout.take(), child.stderr.take()));
        Self { name: name.into(), child, lines: Arc::default(), grown: watch::channel(0).1 }
    }

    /// Everything written so far, stdout and stderr as they came.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The lines so far that contain all `parts`.
    pub fn lines_with(&self, parts: &[&str]) -> Vec<String> {
        self.log().into_iter().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
    }

    /// Waits for a line that contains all `parts`, and returns the first such.
    pub async fn wait_log(&mut self, parts: &[&str]) -> String {
        self.wait_log_after(0, parts).await
    }

    /// Waits for a line that contains all `parts` after the first `skip` lines of the log.
    pub async fn wait_log_after(&mut self, skip: usize, parts: &[&str]) -> String {
        let lines = self.lines.clone();
        let matching = move || {
            let lines = lines.lock().unwrap();
            lines.iter().skip(skip).find(|line| parts.iter().all(|part| line.contains(part))).cloned()
        };
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                self.grown.borrow_and_update();
                if let Some(line) = matching() {
                    return line;
                }
                if self.grown.changed().await.is_err() {
                    // Both pipes are closed: the program has ended.
                    return matching()
                        .unwrap_or_else(|| panic!("{} ended without a line {parts:?}", self.name));
                }
            }
        })
        .await;
        found.unwrap_or_else(|_| panic!("{} wrote no line {parts:?} within {DEADLINE:?}", self.name))
    }

    /// Stops it where it is, with all its threads, until SIGCONT.
    pub async fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        // On a busy machine the thread that got the signal may have to wait before it can stop the others.
        eventually(&format!("{} stops", self.name), async || {
            let threads = of_threads(self.pid(), "status");
            threads.iter().all(|status| status.contains("\nState:\tT")).then_some(())
        })
        .await;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // The child is not reaped while `self.child` lives, so the id is its own.
        self::signal(self.child.id(), signal);
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub async fn exited(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let child = &mut self.child;
        eventually(&what, async || child.try_wait().unwrap()).await
    }

    /// Ends it as systemd does, and waits until all that it wrote has been read.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        let status = self.exited().await;
        // Whoever took over from it may keep the pipes open.
        let read = async { while self.grown.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(LAST_LINES, read).await;
        status
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} wrote:", self.name);
            for line in self.log() {
                eprintln!("    {line}");
            }
        }
    }
}

/// The output of a program, of which nothing was read yet.
pub struct Unread(PipeReader);

impl Unread {
    /// Reads it from now on, as the output of `daemon`.
    pub fn drain(self, daemon: &mut Daemon) {
        let (grow, grown) = watch::channel(0);
        daemon.grown = grown;
        collect(self.0, daemon.lines.clone(), Arc::new(grow));
    }
}

/// Collects the lines of a program's output, and tells how many there are.
fn collect(
    pipe: impl Read + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
    grow: Arc<watch::Sender<usize>>,
) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut lines = lines.lock().unwrap();
            lines.push(text(&line));
            grow.send_replace(lines.len());
        }
    });
}

fn die_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made, which is async-signal-safe.
    #[allow(unsafe_code, reason = "no other way to end children of a killed test run")]
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}
