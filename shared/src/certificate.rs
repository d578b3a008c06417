//! Certificates as files: reading them and their keys, what a leaf says, which CAs are trusted.
//!
//! Private keys are read by [`read_key`] alone; only `mesh-proxy` (and `meshctl`, which makes them) calls it.

mod bundle;
mod error;
mod exposure;
mod files;
mod key;
mod leaf;
mod verifying;

pub use bundle::{Anchor, TrustBundle, why_not_a_ca};
pub use error::{LeafError, MaterialError};
pub use exposure::{exposure, replaceable};
pub(crate) use files::read;
pub use files::{Located, located, read_certificates, read_located};
pub use key::{fresh_key, join_key, read_key};
pub use leaf::{Leaf, issuer, not_after, read_leaf};
pub use verifying::{Role, describe, provider};
