//! Three nodes host an agent; one sidecar is killed, one is stopped (a black hole, not a refusal), one is well. Meanwhile
//! another node sends tasks to the agent by its name.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::eventually;
use crate::mesh::Mesh;
use crate::web::{self, Answer};

/// How much is sent.
pub struct Failover {
    /// Tasks, a tenth of them before anything fails.
    pub posts: usize,
    /// How long after one the next is sent.
    pub every: Duration,
}

/// What became of it.
pub struct Report {
    /// Tasks that got no answer of an agent.
    pub failed: usize,
    /// Those of before the failures, and those of after both nodes were found out: the slowest but one in a hundred.
    pub p99: (Duration, Duration),
    /// Tasks sent after both nodes were found out.
    pub after: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, p99: (before, later), after } = self;
        write!(f, "{failed} failed; p99 {before:?} before, {later:?} for the {after} after both were ejected")
    }
}

impl Failover {
    /// Runs it, and checks what holds for each task.
    ///
    /// # Panics
    /// When a task fails that was not under way to the stopped node, when one arrives twice, when an error does not say
    /// that a repeat is unsafe, or when a node that was found out gets tasks.
    pub async fn run(self) -> Report {
        let mesh = Mesh::new();
        let (mut caller, mut killed, mut stopped, well) = tokio::join!(
            mesh.start("ct110", "opus"),
            mesh.start("ct111", "grok"),
            mesh.start("ct112", "grok"),
            mesh.start("ct113", "grok"),
        );
        for node in ["ct111", "ct112", "ct113"] {
            caller.reaches(node).await;
        }
        // From now on, the roster says that all is well.
        caller.registryd().kill();
        let outbound = caller.outbound();
        let mut sending = JoinSet::new();
        let mut answers: Vec<(usize, Instant, Duration, Answer)> = Vec::new();
        let failing = self.posts / 10;
        let mut found_out = None;
        for number in 0..self.posts {
            if number == failing {
                // Nothing is under way to the node that is killed.
                while let Some(done) = sending.join_next().await {
                    answers.push(done.unwrap());
                }
                killed.proxy().kill();
                stopped.proxy().freeze().await;
            }
            sending.spawn(async move {
                let begun = Instant::now();
                let request = web::request(http::Method::POST, &format!("/agents/grok/task-{number}"));
                let answer = web::send(outbound, request.body(web::full("a task")).unwrap()).await;
                (number, begun, begun.elapsed(), answer)
            });
            tokio::time::sleep(self.every).await;
            if found_out.is_none() {
                let log = caller.proxy().log();
                let is_out = |node| log.iter().any(|line| line.contains(&format!("{node} is not used for")));
                found_out = (is_out("ct111") && is_out("ct112")).then(Instant::now);
            }
        }
        while let Some(done) = sending.join_next().await {
            answers.push(done.unwrap());
        }
        let found_out = found_out.expect("both nodes are found out while tasks are sent");

        let mut failed = 0;
        for (number, begun, _, answer) in &answers {
            if answer.status == 200 {
                let by = answer.header("x-mesh-served-by");
                assert!(*begun < found_out || by == Some("ct113"), "task {number} went to {by:?}");
                continue;
            }
            failed += 1;
            let shown = format!("task {number}: {} {:?} {}", answer.status, answer.headers, answer.text());
            assert!(answer.text().contains("ct112.mesh"), "{shown}");
            assert_eq!(answer.header("x-mesh-error"), Some("peer_failed"), "{shown}");
            assert_eq!(answer.header("x-mesh-retryable"), Some("false"), "{shown}");
            assert_eq!(answer.header("x-should-retry"), Some("false"), "{shown}");
            assert!(*begun < found_out, "{shown}");
        }

        // What lay with the stopped node may arrive now, and it is used again.
        stopped.proxy().signal(libc::SIGCONT);
        eventually("the node that was stopped is used again", async || {
            // At once, so that they are shared out by load: a node that was slow gets none alone for a while.
            let answers = (0..8).map(|_| caller.get("/agents/grok/again"));
            let answers = futures_util::future::join_all(answers).await;
            for answer in &answers {
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
            answers.iter().any(|answer| answer.header("x-mesh-served-by") == Some("ct112")).then_some(())
        })
        .await;
        let mut arrived: HashMap<String, usize> = HashMap::new();
        for node in [&killed, &stopped, &well] {
            for request in node.agent().requests() {
                *arrived.entry(request.target).or_default() += 1;
            }
        }
        for (number, _, _, answer) in &answers {
            let times = arrived.get(&format!("/task-{number}")).copied().unwrap_or_default();
            assert!(times <= 1, "task {number} arrived {times} times");
            assert!(times == 1 || answer.status != 200, "task {number} never arrived");
        }

        let p99 = |wanted: &dyn Fn(usize, Instant) -> bool| {
            let mut took: Vec<Duration> =
                answers.iter().filter(|each| wanted(each.0, each.1)).map(|each| each.2).collect();
            took.sort_unstable();
            (
                took.len(),
                took.get((took.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default(),
            )
        };
        let (_, before) = p99(&|number, _| number < failing);
        let (after, later) = p99(&|_, begun| begun >= found_out);
        Report { failed, p99: (before, later), after }
    }
}
