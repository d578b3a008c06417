//! Follows what the view shows: registryd, this host's sidecar, and the live views of all nodes that permit it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_client::{ClientError, Daemon};
use mesh_shared::live::{MAX_CONNECTIONS, MAX_READERS, NOT_PERMITTED};
use mesh_shared::local_api::{
    AgentView, CERTIFICATES, DaemonStatus, NODES, NodeView, ROSTER_AGENTS, STATUS, SeenCertificates,
};
use mesh_shared::name::NodeName;
use mesh_shared::registry::Status;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::dashboard::model::{Source, Teller};
use crate::dashboard::view::View;
use crate::live::Feed;
use crate::sse::{self, Events};

/// Between two questions about nodes and agents, and about this node.
const ASK_REGISTRY: Duration = Duration::from_secs(2);
const ASK_CERTIFICATES: Duration = Duration::from_secs(10);
/// Between two attempts to read a live view: at first, and at last.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(15);
/// This host's daemons are asked more often, so that the page recovers with them.
const MAX_RETRY_OWN: Duration = Duration::from_secs(2);
/// A node that does not permit it has to be configured and reloaded before it will.
const RETRY_NOT_PERMITTED: Duration = Duration::from_secs(30);
/// Nodes whose live views are asked for.
const MAX_FEEDS: usize = 500;
/// Live views of other nodes that are read at once: the sidecar's socket has places for other readers, too.
const MAX_READ: usize = MAX_CONNECTIONS - MAX_READERS;

/// Where to ask.
#[derive(Debug, Clone)]
pub struct Sources {
    /// registryd.
    pub registryd: Daemon,
    /// The sidecar's outbound side.
    pub outbound: Daemon,
    /// The sidecar's own socket.
    pub sidecar: Daemon,
}

impl Sources {
    /// Keeps the view up to date; does not return.
    pub async fn follow(self, view: Arc<View>) {
        let places = Arc::new(Semaphore::new(MAX_READ));
        tokio::join!(
            self.follow_registry(&view, &places),
            self.follow_changes(&view),
            self.follow_certificates(&view),
            follow_feed(view.clone(), self.sidecar.clone(), Teller::Own, places.clone()),
        );
    }

    async fn follow_registry(&self, view: &Arc<View>, places: &Arc<Semaphore>) {
        let mut tasks = JoinSet::new();
        let mut feeds: HashMap<NodeName, AbortHandle> = HashMap::new();
        loop {
            match self.ask_registry().await {
                Ok((nodes, agents, status)) => {
                    let others =
                        nodes.iter().filter(|view| !view.local && view.node.status != Status::Offline);
                    let wanted: Vec<_> =
                        others.filter_map(|view| view.node.node_name()).take(MAX_FEEDS).collect();
                    let ends = status.sidecar.map(|sidecar| sidecar.certificate_not_after);
                    view.with(|model, _| {
                        model.registry(nodes, agents);
                        model.own_state(status.node, &status.problems, ends);
                    });
                    feeds.retain(|node, task| {
                        let keep = wanted.contains(node);
                        if !keep {
                            task.abort();
                            view.with(|model, _| model.forget(&Teller::Peer(node.clone())));
                        }
                        keep
                    });
                    for node in wanted {
                        feeds.entry(node.clone()).or_insert_with(|| {
                            let (view, sidecar, places) =
                                (view.clone(), self.sidecar.clone(), places.clone());
                            tasks.spawn(follow_feed(view, sidecar, Teller::Peer(node), places))
                        });
                    }
                }
                Err(error) => view.with(|model, _| model.registry_away(error)),
            }
            sleep(ASK_REGISTRY).await;
        }
    }

    async fn ask_registry(&self) -> Result<(Vec<NodeView>, Vec<AgentView>, DaemonStatus), ClientError> {
        let nodes = self.registryd.read(NODES).await?;
        let agents = self.registryd.read(ROSTER_AGENTS).await?;
        Ok((nodes, agents, self.registryd.read(STATUS).await?))
    }

    async fn follow_changes(&self, view: &View) {
        let mut events = Events::default();
        loop {
            // That registryd cannot be reached, `follow_registry` tells.
            if let Ok(mut body) = sse::connect(&self.registryd, &mut events).await {
                while let Some(Ok(frame)) = body.frame().await {
                    let Ok(data) = frame.into_data() else { continue };
                    for event in events.feed(&data) {
                        view.with(|model, now| model.change(&event.name, &event.data, now));
                    }
                }
            }
            sleep(ASK_REGISTRY).await;
        }
    }

    async fn follow_certificates(&self, view: &View) {
        loop {
            // That the sidecar is away, its live view tells.
            let seen = self.outbound.read::<SeenCertificates>(CERTIFICATES).await;
            let pause = if seen.is_ok() { ASK_CERTIFICATES } else { ASK_REGISTRY };
            if let Ok(seen) = seen {
                view.with(|model, _| model.certificates(seen));
            }
            sleep(pause).await;
        }
    }
}

async fn follow_feed(view: Arc<View>, sidecar: Daemon, teller: Teller, places: Arc<Semaphore>) {
    let node = match &teller {
        Teller::Own => None,
        Teller::Peer(node) => Some(node),
    };
    let longest = if node.is_some() { MAX_RETRY } else { MAX_RETRY_OWN };
    let mut pause = RETRY;
    loop {
        if node.is_some() && places.available_permits() == 0 {
            view.with(|model, _| model.source(teller.clone(), Source::Waiting));
        }
        // This host's own view needs no place. The semaphore is never closed.
        let place = if node.is_some() { places.acquire().await.ok() } else { None };
        let ended = match Feed::of(sidecar.clone(), node).await {
            Err(error) => unread(error),
            Ok(mut feed) => loop {
                match feed.next().await {
                    Ok(Some(update)) => {
                        pause = RETRY;
                        view.with(|model, now| model.update(teller.clone(), update, now));
                    }
                    // Another process takes over, or it stops.
                    Ok(None) => break Source::away("its live view has ended; asking again"),
                    Err(error) => break unread(error),
                }
            },
        };
        drop(place);
        let wait = if matches!(ended, Source::NotPermitted) { RETRY_NOT_PERMITTED } else { pause };
        view.with(|model, _| model.source(teller.clone(), ended));
        sleep(wait).await;
        pause = (pause * 2).min(longest);
    }
}

fn unread(error: ClientError) -> Source {
    match error {
        ClientError::Problem(problem) if problem.code == NOT_PERMITTED => Source::NotPermitted,
        error => Source::away(error),
    }
}
