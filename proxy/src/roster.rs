//! What the sidecar knows of the mesh: [`sync`] follows registryd, [`store`] holds the current [`table`] and its copy in
//! [`cache`]; [`registryd`] asks and tells what is not part of the roster.

pub mod cache;
pub mod hosts;
pub mod registryd;
pub mod store;
pub mod sync;
pub mod table;
