//! A change of the mesh, as registryd reports it on its event stream and meshctl shows it.

use serde::{Deserialize, Serialize};

use crate::name::NodeName;
use crate::registry::Status;

/// What happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is new here.
    Joined,
    /// It says something else of itself.
    Updated,
    /// It said goodbye.
    Left,
    /// It fell silent.
    Stale,
    /// Its agent does not answer.
    Degraded,
    /// It is back, or its agent is.
    Recovered,
    /// Its entry is gone from the registry.
    Removed,
}

impl Kind {
    /// The event's name on the stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Updated => "updated",
            Self::Left => "left",
            Self::Stale => "stale",
            Self::Degraded => "degraded",
            Self::Recovered => "recovered",
            Self::Removed => "removed",
        }
    }
}

/// One change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Rises with every event, also across restarts.
    pub id: u64,
    /// What happened.
    pub event: Kind,
    /// To which node.
    pub node: NodeName,
    /// Its state since then.
    pub status: Status,
    /// The agents there.
    pub agents: Vec<String>,
    /// When it was noticed here, epoch ms.
    pub at: u64,
}
