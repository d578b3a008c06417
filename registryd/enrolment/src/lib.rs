//! Joining the mesh without copying keys: invitations, the process of the CA that answers hosts, and the side of the
//! host that joins.
//!
//! ```text
//! meshctl invite ──▶ <ca>/invites/ ◀── meshctl ca serve ◀── TLS 1.3, [::]:3005 ── meshctl join <token>
//!                                            ▲
//!                                            └── /run/mesh-ca/ca.sock ◀── mesh-proxy of this host ◀══ nodes that renew
//! ```
//! Only `meshctl` links this crate, because only it may link what signs.

mod client;
mod invites;
mod server;
mod tls;
mod token;

pub use client::{ClientError, enrol};
pub use invites::{Invites, InvitesError, Offer};
pub use mesh_ca::hex;
pub use server::{Here, ServeError, Settings, serve};
pub use tls::ENROLMENT_NAME;
pub use token::{Address, MAX_ADDRESSES, Secret, Token, TokenError};
