//! `plyfs check` finds what is wrong with a store and says what to do; `plyfs prune` removes what no layer needs.

use std::fs;

use plyfs::driver::LayerId;
use serde_json::Value;

use crate::common::cmd::Done;
use crate::driver_kit;
use crate::every_driver;
use crate::store_kit::{Box_, tree};

fn id(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

/// A layer from an archive, and a writable one on it.
fn two_layers(store: &Box_<'_>) {
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    store.does(&["check"]).says("2 layers, nothing wrong");
}

fn finds(store: &Box_<'_>, what: &str) -> Done {
    let done = store.plyfs(&["check"]).exits(1);
    done.says(what);
    done
}

fn changed_files_are_named(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    let own = store.0.own("base");
    fs::write(own.join("d/b"), "too\n").unwrap();
    fs::remove_file(own.join("a")).unwrap();
    finds(&store, "layer 'base': file 'd/b': ");
    finds(&store, "layer 'base': file 'a': ");
    finds(&store, "2 layers, 2 problems");
    // Nothing in the store has the bytes.
    store.plyfs(&["check", "--repair"]).exits(1).says("plyfs layer rm base, and fill it anew");
    let json = store.plyfs(&["--json", "check"]).exits(1).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["layers"], &json["problems"][0]["layer"]),
        (&2.into(), &"base".into()),
        "{json}"
    );
    fs::write(own.join("d/b"), "two\n").unwrap();
    fs::write(own.join("a"), "one\n").unwrap();
    store.does(&["check"]);
}

fn damaged_records_are_named(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    let dir = store.0.root().join("layers/base");
    let damaged = |name: &str, bytes: &[u8], why: &str| {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        finds(&store, why);
        fs::write(&path, whole).unwrap();
        store.does(&["check"]);
    };
    damaged("layer.json", b"{", "layer.json: corrupt");
    damaged("tar-split.gz", b"", "layer 'base': ");
    damaged("tar-split.gz", b"rubbish", "layer 'base': ");
    let record = fs::read_to_string(dir.join("layer.json")).unwrap();
    let at = record.find("sha256:").unwrap() + 7;
    let mut other = record.clone().into_bytes();
    other[at] = if other[at] == b'0' { b'1' } else { b'0' };
    damaged("layer.json", &other, "its record says sha256:");
    fs::remove_file(dir.join("tar-split.gz")).unwrap();
    finds(&store, "tar-split.gz is missing");
}

fn missing_storage_is_told(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    store.0.driver.remove(&id("box")).unwrap();
    finds(&store, "layer 'box': its storage is missing; plyfs layer rm box removes it");
    store.does(&["layer", "rm", "box"]);
    store.does(&["check"]).says("1 layer, nothing wrong");
    store.does(&["layer", "create", "--parent", "base", "box"]);
    fs::remove_dir_all(store.0.root().join("layers/base")).unwrap();
    finds(&store, "layer 'box': layer 'base', on which it lies, is missing");
}

fn the_record_of_a_parent_is_repaired(store: &driver_kit::Store) {
    let (record, wrong) = match store.driver.name() {
        "overlay" => ("parent", "none-such"),
        "vfs" => return println!("skipped: a copy has no record of its parent"),
        _ => ("lower", "l/NOSUCHLINK"),
    };
    let store = Box_(store);
    two_layers(&store);
    store.does(&["layer", "create", "--parent", "box", "top"]);
    let path = store.0.driver.home().join("top").join(record);
    for text in ["", wrong] {
        fs::write(&path, text).unwrap();
        finds(&store, "layer 'top': its storage says that it lies on ");
        store.does(&["check", "--repair"]).says("; repaired\n3 layers, 1 problem, 1 repaired");
        store.does(&["check"]).says("3 layers, nothing wrong");
        assert_eq!(store.0.driver.parent(&id("top")).unwrap(), Some(id("box")));
    }
}

fn storage_without_a_record_is_pruned(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    store.0.read_only("lost", None);
    store.0.read_only("lost-above", Some("lost"));
    store.0.read_only("lost-top", Some("lost-above"));
    finds(&store, "layer 'lost': there is storage without a record; plyfs prune removes it");
    store.does(&["prune", "--dry-run"]).says("3 layers would be removed");
    assert!(store.0.driver.exists(&id("lost")).unwrap());
    store.does(&["prune"]).says("3 layers removed");
    assert_eq!(store.0.driver.list().unwrap(), [id("base"), id("box")]);
    store.does(&["prune"]).says("0 layers removed, 0 bytes");
    store.does(&["check"]);
}

fn what_a_layer_lies_on_is_not_pruned(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    fs::remove_dir_all(store.0.root().join("layers/base")).unwrap();
    store.does(&["prune"]);
    assert!(store.0.driver.exists(&id("base")).unwrap());
    assert!(store.0.driver.exists(&id("box")).unwrap());
}

fn a_refused_removal_leaves_the_store_open(store: &driver_kit::Store) {
    let name = store.driver.name();
    if name == "vfs" || name == "overlay" {
        return println!("skipped: layers without a parent are not mounted by {name}");
    }
    let store = Box_(store);
    two_layers(&store);
    store.0.read_only("lower", Some("base"));
    store.0.read_write("lost", Some("lower"));
    store.0.read_only("other", Some("lower"));
    store.0.see("lost", |_| {
        // Only what that lies on stays with it.
        let done = store.plyfs(&["prune"]).exits(1);
        done.complains("layer 'lost': in use by ").says("other  ").says("\n1 layer removed");
        assert_eq!(done.stderr.matches("plyfs: ").count(), 1, "{}", done.story());
        store.does(&["layer", "ls"]).says("box");
    });
    store.does(&["prune"]).says("2 layers removed");
}

fn nothing_is_pruned_where_parents_cannot_be_told(store: &driver_kit::Store) {
    let record = match store.driver.name() {
        "overlay" => "parent",
        "vfs" => return println!("skipped: a copy has no record of its parent"),
        _ => "lower",
    };
    let store = Box_(store);
    two_layers(&store);
    fs::remove_dir_all(store.0.root().join("layers/base")).unwrap();
    fs::write(store.0.driver.home().join("box").join(record), "").unwrap();
    // Refused, or known from the record in the store.
    store.plyfs(&["prune"]).run();
    assert!(store.0.driver.exists(&id("base")).unwrap());
}

fn layers_of_another_driver_are_left_to_it(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    store.does(&["layer", "create", "--read-only", "half"]);
    // As a crash of an apply leaves it.
    fs::write(store.0.root().join("pending/half"), "apply").unwrap();
    fs::write(store.0.own("half").join("x"), "half").unwrap();
    let other = if store.0.driver.name() == "vfs" { "overlay" } else { "vfs" };
    let named = match store.0.driver.name() {
        // They share one home.
        "fuse-overlay" => "overlay2",
        name => name,
    };
    let on = |words: &[&str]| store.plyfs_on(other, words).exits(1);
    let kept = format!("kept by another driver than {other}; use --driver {named}");
    for words in [
        &["layer", "rm", "box"][..],
        &["layer", "mount", "box"],
        &["layer", "apply", "half", "/dev/null"],
    ] {
        on(words).complains(&kept);
    }
    on(&["layer", "create", "--parent", "base", "new"]).complains(&kept);
    on(&["check", "--repair"]).says(&format!(
        "layer 'box': its storage is kept by the driver {named}; plyfs --driver {named} check looks at it"
    ));
    store.plyfs_on(other, &["prune"]).succeeds().says("0 layers removed");
    assert_eq!(fs::read_to_string(store.0.own("half").join("x")).unwrap(), "half");
    // The next start on their own driver clears up.
    store.does(&["check"]).says("3 layers, nothing wrong");
    assert!(!store.0.own("half").join("x").exists());
}

fn what_others_work_on_is_not_called_broken(store: &driver_kit::Store) {
    let store = Box_(store);
    two_layers(&store);
    fs::write(store.0.own("base").join("a"), "half").unwrap();
    finds(&store, "layer 'base': file 'a': ");
    let path = store.0.root().join("pending/base");
    let mut file = fs::File::create_new(&path).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    std::io::Write::write_all(&mut file, b"apply").unwrap();
    store
        .does(&["check"])
        .says("layer 'base': not looked at: another process changes it\n2 layers, nothing wrong");
    let json: Value = serde_json::from_str(&store.does(&["--json", "check"]).stdout).unwrap();
    assert_eq!(
        (&json["busy"][0], &json["problems"]),
        (&"base".into(), &Value::Array(vec![])),
        "{json}"
    );
    fs::remove_file(&path).unwrap();
    drop(file);
    finds(&store, "layer 'base': file 'a': ");
}

every_driver! {
    busy, what_others_work_on_is_not_called_broken;
    of_another, layers_of_another_driver_are_left_to_it;
    refused_removal, a_refused_removal_leaves_the_store_open;
    untold_parents, nothing_is_pruned_where_parents_cannot_be_told;
    changed_files, changed_files_are_named;
    damaged_records, damaged_records_are_named;
    missing_storage, missing_storage_is_told;
    record_of_a_parent, the_record_of_a_parent_is_repaired;
    prune, storage_without_a_record_is_pruned;
    prune_keeps, what_a_layer_lies_on_is_not_pruned;
}
