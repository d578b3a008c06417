//! What `mesh-proxy` and `registryd` must agree on, and nothing else: names and identities, the
//! configuration file, the `mesh.json` model, the types on the local socket between the two, and their command line.
//!
//! Everything here is parsing and data. There is no runtime, no network and no background work;
//! the only files read are the configuration and certificates, and `atomic_file` is how all of them write one.

pub mod address;
pub mod atomic_file;
pub mod cause;
pub mod certificate;
pub mod check;
pub mod config;
pub mod confinement;
pub mod daemon;
pub mod enrolment;
pub mod event;
pub mod hosts_file;
pub mod identity;
pub mod json;
pub mod live;
pub mod local_api;
pub mod logging;
pub mod material;
pub mod message;
pub mod name;
pub mod pem;
pub mod policy;
pub mod registry;
pub mod revocation;
pub mod service_manager;
pub mod spiffe;
pub mod unix_socket;

pub use address::{BackendAddr, LocalAddr, LoopbackAddr};
pub use cause::root_cause;
pub use identity::Identity;
pub use name::{AgentName, NodeName};
