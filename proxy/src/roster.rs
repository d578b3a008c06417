//! What the sidecar knows of the mesh.

pub mod sync;
pub mod table;
