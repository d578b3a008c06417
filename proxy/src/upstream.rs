//! From "which node" to "which connection".

pub mod connect;
pub mod io;
pub mod peers;
pub mod pool;
