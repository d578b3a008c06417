use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

use mesh_shared::registry::{Node, Status};

use super::*;

fn store(folder: &tempfile::TempDir, node: &str) -> Store {
    Store::new(folder.path().join("mesh.json"), &node.parse().unwrap())
}

fn node(name: &str) -> Node {
    Node {
        id: name.into(),
        name: name.into(),
        host: "10.0.0.1".into(),
        status: Status::Online,
        ..Node::default()
    }
}

fn enter(name: &str) -> impl FnMut(&mut Registry) -> bool {
    let node = node(name);
    move |registry| registry.nodes.insert(node.id.clone(), node.clone().into()).is_none()
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let folder = folder.clone();
            thread::spawn(move || {
                let store = store(&folder, &format!("n{writer}"));
                for i in 0..10 {
                    store.change(None, enter(&format!("n{writer}-{i}"))).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(store(&folder, "n0").read().unwrap().0.nodes.len(), 80);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "only mesh.json and its lock stay: {left:?}");
}

#[test]
fn broken_content_is_set_aside_only_for_a_good_view() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    let broken = br#"{"version":1,"nodes":{"a""#;
    fs::write(store.path(), broken).unwrap();
    assert!(matches!(store.change(None, |_| true), Err(StoreError::Content { .. })));
    assert_eq!(fs::read(store.path()).unwrap(), broken);

    let mut good = Registry::empty();
    good.nodes.insert("ct111".into(), node("ct111").into());
    let written = store.change(Some(&good), enter("ct110")).unwrap();
    assert_eq!(fs::read(written.set_aside.unwrap()).unwrap(), broken);
    assert_eq!(store.read().unwrap().0.nodes.keys().collect::<Vec<_>>(), ["ct110", "ct111"]);
}

#[test]
fn only_the_newest_broken_contents_are_kept_and_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    let good = Registry::empty();
    let set_aside = |content: &str| {
        fs::write(store.path(), content).unwrap();
        store.change(Some(&good), |_| true).unwrap().set_aside.unwrap()
    };
    // As many as there may be, with numbers that only count up.
    for age in 1..=MAX_SET_ASIDE {
        fs::write(folder.path().join(format!("mesh.json.corrupt-{age}")), format!("{{old {age}")).unwrap();
    }
    let first = set_aside("{first");
    assert_eq!(set_aside("{first"), first);
    assert_eq!(set_aside("{old 3"), folder.path().join("mesh.json.corrupt-3"));
    let kept = || {
        fs::read_dir(folder.path())
            .unwrap()
            .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().contains("corrupt"))
            .count()
    };
    assert_eq!(kept(), MAX_SET_ASIDE);
    assert!(!folder.path().join("mesh.json.corrupt-1").exists() && first.exists());
}

#[test]
fn what_could_not_be_read_again_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    store.change(None, enter("ct110")).unwrap();
    let before = fs::read(store.path()).unwrap();
    let deep = (0..125).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    let refused = store.change(None, |registry| {
        registry.nodes.insert("ct112".into(), Node { metadata: Some(deep.clone()), ..node("ct112") }.into());
        true
    });
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("left as it is") && told.contains("recursion limit"), "{told}");
    assert_eq!(fs::read(store.path()).unwrap(), before);
}

#[test]
fn an_empty_file_that_nobody_fills_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    fs::write(store.path(), " \n").unwrap();
    assert!(store.change(None, enter("ct110")).unwrap().set_aside.is_none());
    assert_eq!(store.read().unwrap().0.nodes.len(), 1);
}

#[test]
fn a_link_stays_and_everything_happens_where_it_leads() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = store(&here, "ct110");
    let target = there.path().join("registry.json");
    std::os::unix::fs::symlink(&target, here.path().join("second")).unwrap();
    std::os::unix::fs::symlink("second", store.path()).unwrap();
    // The file is missing at first.
    for name in ["ct110", "ct111"] {
        store.change(None, enter(name)).unwrap();
    }
    assert_eq!(fs::read_link(store.path()).unwrap(), Path::new("second"));
    assert_eq!(store.read().unwrap().0.nodes.len(), 2);
    let names = |folder: &tempfile::TempDir| {
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&here), ["mesh.json", "second"]);
    assert_eq!(names(&there), ["registry.json", "registry.json.lock"]);
}

#[test]
fn other_forms_and_versions_are_never_touched() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    for content in [&b"[{\"name\":\"ct110\"}]"[..], b"{\"version\":2,\"nodes\":{}}"] {
        fs::write(store.path(), content).unwrap();
        assert!(matches!(store.change(Some(&Registry::empty()), |_| true), Err(StoreError::Content { .. })));
        assert_eq!(fs::read(store.path()).unwrap(), content);
    }
}

#[test]
fn half_written_content_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    fs::write(store.path(), "").unwrap();
    let path = store.path().to_owned();
    let slow = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        fs::write(path, r#"{"version":1,"nodes":{},"owner":"rivet"}"#).unwrap();
    });
    assert!(store.change(Some(&Registry::empty()), enter("ct110")).unwrap().set_aside.is_none());
    slow.join().unwrap();
    assert_eq!(store.read().unwrap().0.further("owner").unwrap(), "rivet");
}

#[test]
fn a_removed_folder_or_file_comes_back_with_what_was_known() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path().join("shared/mesh.json"), &"ct110".parse().unwrap());
    store.change(None, enter("ct110")).unwrap();
    let (good, _) = store.read().unwrap();
    fs::remove_dir_all(folder.path().join("shared")).unwrap();
    assert!(store.read().unwrap_err().is_missing());
    store.change(Some(&good), enter("ct111")).unwrap();
    assert_eq!(store.read().unwrap().0.nodes.len(), 2);
}

#[test]
fn the_access_that_others_have_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, "ct110");
    store.change(None, enter("ct110")).unwrap();
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o660)).unwrap();
    store.change(None, enter("ct111")).unwrap();
    assert_eq!(fs::metadata(store.path()).unwrap().mode() & 0o777, 0o660);
}
