//! Membership of the mesh: who is in it, who is alive, and how each node is reached.
//!
//! `registryd` is the control plane of one node. It holds no key and has no public port: other nodes reach it,
//! and it reaches them, through the node's own sidecar. Requests between agents never wait for it.
//!
//! ```text
//!  mesh.json ◀─▶ backend (file: two threads of its own;       peers ◀─▶ peer_client (own sidecar's outbound side)
//!  or etcd           │  etcd: a task)  observations               │ entries heard
//!                    ▼                                            ▼
//!                 state ── membership: merge, liveness (pure) ──▶ view, roster, events, problems
//!                    ▲                                            │
//!      heartbeat, discovery, addresses                            ▼
//!                                                  api: mesh-proxy, meshctl; dns_server; metrics
//! ```
//!
//! `membership` decides and never waits; `state` is the only owner of a `Membership` and publishes what follows
//! from it; everything else feeds it or reads the published snapshots. `backend` is the seam to whatever keeps the
//! registry: it observes and brings up to date, and knows of the state only that it is a ledger.

pub mod addresses;
pub mod api;
pub mod app;
pub mod backend;
pub mod connections;
pub mod discovery;
pub mod dns_server;
pub mod events;
pub mod export;
pub mod heartbeat;
pub mod jitter;
pub mod limits;
pub mod membership;
pub mod metrics;
pub mod peer_client;
pub mod resolver;
pub mod span;
pub mod state;
pub mod view;
