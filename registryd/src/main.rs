//! `registryd`: the registry daemon of one node.

use std::process::ExitCode;

use mesh_shared::{check, daemon};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is free is given back by a thread of jemalloc's own, also while nothing happens.
#[cfg(feature = "jemalloc")]
#[allow(unsafe_code, reason = "jemalloc finds its options by this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8; 23] = b"background_thread:true\0";

fn main() -> ExitCode {
    daemon::main(&daemon::REGISTRYD, check::registryd, registryd::app::needs, registryd::app::run)
}
