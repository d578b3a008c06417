//! The seam between what this node knows and whatever keeps the registry for the whole mesh.
//!
//! A backend observes the registry and tells a [`Ledger`] of it, and brings it up to date when it is asked to: with
//! this node's own beat and claims, with nodes that registered, without nodes that are to be forgotten. It decides
//! nothing about membership; the ledger says, for the content as it is at that moment, what has to change.
//!
//! There are two kinds. A file is read and written whole, and a node lives in it as long as its stamp is seen to move
//! ([`Observation::Read`], [`file::Amend`]). etcd keeps each entry by itself, tells of each change by itself, and ends a
//! node's lease when nobody renews it ([`Observation::Snapshot`], [`Observation::Changes`], [`etcd::Speak`]).

pub mod bridge;
pub mod etcd;
pub mod file;

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use mesh_shared::NodeName;
use mesh_shared::registry::{Entry, Registry};
use tokio::sync::oneshot;

use crate::membership::Holder;

/// What a backend observed.
#[derive(Debug)]
pub enum Observation {
    /// The whole registry, which was read because it changed.
    Read {
        /// The content.
        registry: Registry,
        /// How it was looked at.
        look: Look,
    },
    /// All entries of a store that keeps each by itself: at first, and when changes were missed.
    Snapshot {
        /// Each entry.
        entries: Vec<(NodeName, Entry)>,
        /// For whom a lease is held, and by whom.
        leases: HashMap<NodeName, Holder>,
        /// Rises with every change in the store.
        revision: i64,
        /// Whether changes since the last observation are not known one by one any more.
        missed: bool,
    },
    /// What changed since the last observation, in order; nothing says that the store still answers.
    Changes {
        /// Each change.
        changes: Vec<Change>,
        /// Of the last one.
        revision: i64,
    },
    /// This node's lease was renewed.
    Renewed {
        /// How long it lasts from now on.
        ttl: Duration,
    },
    /// The registry is as it was observed last.
    Unchanged(Look),
    /// The registry could not be read.
    Unreadable(Failure),
    /// The registry was brought up to date.
    Written {
        /// Its content now.
        registry: Option<Registry>,
        /// Whether anything had to be changed for it.
        replaced: bool,
        /// Whether this node's beat was to be in it.
        beat: bool,
        /// How long it took, waiting for others included.
        took: Duration,
        /// Where content was put aside that nobody could read.
        set_aside: Option<String>,
    },
    /// The registry could not be written.
    Unwritable(Failure),
    /// What was put aside is no longer there.
    AsideCleared,
    /// The storage does not answer (with what to say of it), or does so again.
    Hangs(Option<String>),
}

/// A change of one entry.
#[derive(Debug)]
pub enum Change {
    /// It is new, or says something else.
    Entry(NodeName, Box<Entry>),
    /// It was taken out.
    Removed(NodeName),
    /// A lease is held for the node, and by whom; or no longer.
    Lease(NodeName, Option<Holder>),
}

/// One look at the registry.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Whether the registry could have been written just now.
    pub writes_pass: bool,
    /// When it is looked at again.
    pub pause: Duration,
}

/// Why a backend could not do something.
#[derive(Debug, Clone)]
pub struct Failure {
    /// In a sentence that says what to do.
    pub sentence: String,
    /// Whether there is no registry, which may mean that there never was one.
    pub missing: bool,
}

/// What is asked of a backend.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Publish this node's beat, with a new stamp.
    pub beat: bool,
    /// Take these nodes out.
    pub forget: Vec<NodeName>,
}

/// Who keeps the view of the mesh.
pub trait Ledger: Send + Sync + 'static {
    /// Takes in what was observed.
    fn observed(&self, observation: Observation);
}

/// The way to a backend that runs. Requests that come while one is under way become one.
#[derive(Debug, Clone)]
pub struct Backend {
    jobs: Jobs,
}

/// To a thread, or to a task.
#[derive(Debug, Clone)]
enum Jobs {
    Thread(mpsc::Sender<Job>),
    Task(tokio::sync::mpsc::UnboundedSender<Job>),
}

#[derive(Debug)]
struct Job {
    wish: Wish,
    /// Whether it can wait a moment for others like it.
    patient: bool,
    done: oneshot::Sender<Result<(), String>>,
}

impl Backend {
    /// Brings the registry up to date, with this node's beat if one is due.
    ///
    /// # Errors
    /// What went wrong, in a sentence. The ledger knows it already. A storage that hangs is an error only to a caller
    /// that sets a limit of its own.
    pub async fn publish(&self, beat: bool) -> Result<(), String> {
        self.ask(Wish { beat, ..Wish::default() }, false).await
    }

    /// Enters nodes that registered with this one. Many that come in a row are entered together.
    ///
    /// # Errors
    /// As for [`Self::publish`].
    pub async fn register(&self) -> Result<(), String> {
        self.ask(Wish::default(), true).await
    }

    /// Takes nodes out of the registry.
    ///
    /// # Errors
    /// As for [`Self::publish`].
    pub async fn forget(&self, nodes: Vec<NodeName>) -> Result<(), String> {
        self.ask(Wish { forget: nodes, beat: false }, false).await
    }

    async fn ask(&self, wish: Wish, patient: bool) -> Result<(), String> {
        let (done, outcome) = oneshot::channel();
        let stopped = || "the task that keeps the storage has stopped".to_owned();
        let job = Job { wish, patient, done };
        let sent = match &self.jobs {
            Jobs::Thread(jobs) => jobs.send(job).is_ok(),
            Jobs::Task(jobs) => jobs.send(job).is_ok(),
        };
        if !sent {
            return Err(stopped());
        }
        outcome.await.map_err(|_| stopped())?
    }
}
