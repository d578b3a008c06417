//! What the daemons take from themselves (Landlock), where the kernel can.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use mesh_tests::eventually;
use mesh_tests::mesh::{Mesh, Node};
use serde_json::json;

/// Puts another folder, to which a link leads, in the place of this one.
fn divert(folder: &Path, to: &Path) {
    fs::rename(folder, folder.with_extension("was")).unwrap();
    symlink(to, folder).unwrap();
}

/// A node that says that it is confined; `None` where the kernel cannot.
async fn started(mesh: &Mesh, change: impl FnOnce(&mut serde_json::Value)) -> Option<Node> {
    let mut node = mesh.node("ct110").agent("opus").with(change).start().await;
    let said = node.proxy().wait_log(&["INFO [Mesh]", "confined by Landlock: "]).await;
    if said.contains("this kernel has no Landlock") {
        eprintln!("##### SKIPPED: this kernel has no Landlock. #####");
        return None;
    }
    assert!(said.contains(" confined by Landlock: writes only below "), "{said}");
    node.registryd().wait_log(&["INFO [Mesh] confined by Landlock: writes only below "]).await;
    Some(node)
}

#[tokio::test]
async fn the_sidecar_writes_only_to_its_own_folders() {
    let mesh = Mesh::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("state");
    fs::create_dir(&folder).unwrap();
    let at = folder.clone();
    let Some(mut node) = started(&mesh, |config| config["proxy"]["state_dir"] = json!(at)).await else {
        return;
    };
    node.has_roster().await;
    divert(&folder, elsewhere.path());
    node.proxy().stop().await;
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // The folder is as good as another one for a process that starts with it.
    node.start_proxy().await;
    node.has_roster().await;
    node.proxy().stop().await;
    assert_ne!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn without_landlock_it_is_said() {
    let mesh = Mesh::new();
    let mut node = mesh
        .node("ct110")
        .agent("opus")
        .with(|config| config["mesh"]["landlock"] = json!(false))
        .start()
        .await;
    node.proxy().wait_log(&["INFO [Mesh] not confined by Landlock (mesh.landlock)"]).await;
}

#[tokio::test]
async fn a_registry_whose_folder_is_replaced_is_written_again() {
    let mesh = Mesh::new();
    let Some(node) = started(&mesh, |_| {}).await else { return };
    node.has_roster().await;
    let folder = mesh.registry_path().parent().unwrap().to_owned();
    fs::rename(&folder, folder.with_extension("was")).unwrap();
    fs::create_dir(&folder).unwrap();
    for file in fs::read_dir(folder.with_extension("was")).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_dir() {
            fs::rename(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    eventually("it registers anew", async || mesh.registry_path().exists().then_some(())).await;
}
