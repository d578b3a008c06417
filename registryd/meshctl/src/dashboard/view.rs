//! The model, shared by what follows the mesh and what serves pages, and the news that go out each second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mesh_shared::name::NodeName;
use tokio::sync::broadcast;

use crate::dashboard::model::{Model, Now};

const TICK: Duration = Duration::from_secs(1);
/// Seconds that a page may be behind before it begins again.
const MAX_BEHIND: usize = 8;

/// The one view of the mesh that all pages show.
#[derive(Debug)]
pub struct View {
    model: Mutex<Model>,
    start: Instant,
    news: broadcast::Sender<Bytes>,
}

impl View {
    /// Of a node, where its name is known.
    pub fn new(own: Option<NodeName>) -> Self {
        let news = broadcast::Sender::new(MAX_BEHIND);
        Self { model: Mutex::new(Model::new(own)), start: Instant::now(), news }
    }

    /// Reads or changes the model.
    pub fn with<T>(&self, work: impl FnOnce(&mut Model, Now) -> T) -> T {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Now { ms: self.start.elapsed().as_millis() as u64, epoch_ms: epoch.as_millis() as u64 };
        work(&mut self.model.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    /// All there is, and the news from then on, none of them missing.
    pub fn follow(&self) -> (Bytes, broadcast::Receiver<Bytes>) {
        self.with(|model, now| (model.snapshot(now).into(), self.news.subscribe()))
    }

    /// Tells all pages the news, each second.
    pub async fn tell(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Fails while no page is open.
            let _ = self.with(|model, now| self.news.send(model.tick(now).into()));
        }
    }
}
