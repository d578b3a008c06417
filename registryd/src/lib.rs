//! Membership of the mesh: who is in it, who is alive, and how each node is reached.
//!
//! `registryd` is the control plane of one node. It holds no key and has no public port: other nodes reach it,
//! and it reaches them, through the node's own sidecar. Requests between agents never wait for it.
//!
//! ```text
//!  mesh.json ◀─▶ store (two threads of their own)      peers ◀─▶ peer_client (own sidecar's outbound side)
//!                    │ registries read                      │ entries heard
//!                    ▼                                      ▼
//!                 state ── membership: merge, liveness (pure) ──▶ view, roster, events
//!                    ▲                                      │
//!      heartbeat, discovery, addresses                      ▼
//!                                            socket: mesh-proxy, meshctl; dns_server
//! ```
//!
//! `membership` decides and never waits; `state` is the only owner of a `Membership` and publishes what follows
//! from it; everything else feeds it or reads the published snapshots.

pub mod addresses;
pub mod app;

pub mod discovery;
pub mod dns_server;
pub mod events;
pub mod heartbeat;

pub mod jitter;
pub mod membership;
pub mod peer_client;
pub mod resolver;
pub mod socket;
pub mod state;
pub mod store;
pub mod view;
