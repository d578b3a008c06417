//! `registryd`: the registry daemon of one node.

use std::process::ExitCode;

use mesh_shared::{check, daemon};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    daemon::main(&daemon::REGISTRYD, check::registryd, registryd::app::needs, registryd::app::run)
}
