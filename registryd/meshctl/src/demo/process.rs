//! The demo's child processes: each with a log file, none outliving meshctl.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// How long a step may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    /// What to call it.
    pub name: String,
    /// Its stdout and stderr.
    pub log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// The program or its log cannot be opened.
    pub fn start(name: &str, program: &Path, arguments: &[&str], log: PathBuf) -> Result<Self, String> {
        let fail = |error: io::Error| format!("cannot start {name} ({}): {error}", program.display());
        let output = File::create(&log).map_err(fail)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(fail)?)
            .stderr(output)
            // Ctrl-C is for meshctl alone, which ends its children in order.
            .process_group(0)
            .kill_on_drop(true);
        for variable in ["MESH_LOG", "MESH_CONFIG", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
            command.env_remove(variable);
        }
        die_with_parent(&mut command);
        let child = command.spawn().map_err(fail)?;
        Ok(Self { name: name.into(), log, child })
    }

    /// Waits for the first line of the log with all of these parts and returns it.
    ///
    /// # Errors
    /// The process ended, or the line did not come in time.
    pub async fn line(&mut self, parts: &[&str]) -> Result<String, String> {
        let start = Instant::now();
        loop {
            let log = std::fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let found = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            if let Some(line) = found {
                return Ok(line.into());
            }
            self.runs()?;
            if start.elapsed() > PATIENCE {
                return Err(format!("{} did not log {parts:?} within {} s", self.name, PATIENCE.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It has ended.
    pub fn runs(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(format!("{} ended by itself ({status})", self.name)),
            _ => Ok(()),
        }
    }

    /// Kills it and waits until it is gone.
    pub async fn end(mut self) {
        // Fails only when it is gone already.
        let _ = self.child.kill().await;
    }

    /// The last lines of the log.
    pub fn tail(&self, lines: usize) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}\n")).collect()
    }
}

/// Waits until `look` finds something.
///
/// # Errors
/// It found nothing in time; the text ends with what it said last.
pub async fn eventually<T>(what: &str, look: impl AsyncFn() -> Result<T, String>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(last) if start.elapsed() > PATIENCE => {
                return Err(format!("{what}: not within {} s; last: {last}", PATIENCE.as_secs()));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Has the kernel kill the child when meshctl dies, however that happens.
#[allow(
    unsafe_code,
    reason = "the only way to ask for a parent-death signal; both calls are async-signal-safe"
)]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid are called, which touch no memory of ours.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            match u32::try_from(libc::getppid()) == Ok(parent) {
                true => Ok(()),
                false => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            }
        });
    }
}
