//! How a process that accepts no new work waits for the work in progress.

use std::time::Duration;

use mesh_shared::config::Config;
use tokio::time::{Instant, sleep_until};

use super::shared::Shared;
use super::signals::Signals;
use crate::caller;
use crate::handover::Successor;
use crate::supervisor::Supervisor;

/// How often a process that stops says what it waits for, at first and, after an upgrade, at last.
const WAITING_TOLD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Waits until `all` has ended, `deadline` is over, or somebody insists; says now and then what it waits for.
pub(super) async fn wait(
    shared: &Shared,
    config: &Config,
    signals: &mut Signals,
    supervisor: &Supervisor,
    all: impl Future<Output = ()>,
    mut deadline: Option<Instant>,
    mut successor: Option<&mut Successor>,
) {
    tokio::pin!(all);
    let limit = config.proxy.timeouts.drain;
    let upgrading = successor.is_some();
    let mut pause = WAITING_TOLD.0;
    let tell = async || {
        let what = format!("stopping; {} finish first", shared.under_way());
        tracing::info!(target: "Mesh", "{what}");
        supervisor.waits_for(&what).await;
    };
    tell().await;
    let mut tell_at = Instant::now() + pause;
    let cut = |why: String| {
        caller::all_cut("the sidecar ended");
        tracing::warn!(target: "Mesh", "{} {why}; they are cut off", shared.under_way());
    };
    loop {
        tokio::select! {
            biased;
            () = &mut all => return,
            () = signals.stop() => match deadline {
                Some(_) => return cut("were under way when it was told to stop once more".into()),
                None => deadline = Some(Instant::now() + limit),
            },
            end = async {
                match successor.as_mut() {
                    Some(successor) => successor.ended().await,
                    None => std::future::pending().await,
                }
            } => {
                successor = None;
                tracing::error!(
                    target: "Mesh",
                    "the process that took over has ended ({end}); this one ends too, so that the service manager \
                     starts another"
                );
                deadline = Some(Instant::now() + limit);
            }
            () = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            } => {
                let ms = limit.as_millis();
                return cut(format!("after {ms} ms (proxy.timeouts.drain_ms)"));
            }
            () = sleep_until(tell_at) => {
                tell().await;
                tell_at += pause;
                if upgrading && deadline.is_none() {
                    pause = (pause * 2).min(WAITING_TOLD.1);
                }
            }
        }
    }
}
