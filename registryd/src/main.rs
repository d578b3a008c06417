//! `registryd`: the registry daemon of one node.

use std::process::ExitCode;

use mesh_shared::{check, daemon};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let about = "Keeps this node in the mesh's registry: heartbeats, mesh.json, discovery, names";
    daemon::main("registryd", about, check::registryd, registryd::app::needs, registryd::app::run)
}
