//! Shows a folder at another path, as a network mount does, until its input ends: for tests/faults, which stops this
//! process to make the mount hang. Arguments: FOLDER PATH.

use std::io::{self, Read};
use std::path::PathBuf;

use mesh_tests::view::View;

fn main() -> io::Result<()> {
    let paths: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, path] = paths.as_slice() else { return Err(io::Error::other("usage: share FOLDER PATH")) };
    let Some(_view) = View::mount(folder, path) else { return Err(io::Error::other("no FUSE mounts here")) };
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
