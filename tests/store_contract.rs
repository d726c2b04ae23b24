//! What other layer stores promise, and this one does, on every driver.

use std::fs;

use sha2::{Digest, Sha256};

use crate::common::cmd::Cmd;
use crate::driver_kit;
use crate::every_driver;
use crate::store_kit::{Box_, tree};

/// Of an archive that has nothing but its end, as every image with an empty layer names it.
const EMPTY: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

fn an_empty_layer_has_the_digest_that_all_know(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "alone"]);
    store.does(&["layer", "create", "--parent", "base", "child"]);
    for name in ["alone", "child"] {
        let diff = store.0.sandbox.at("diff.tar");
        store.does(&["layer", "diff", name, "-o", diff.to_str().unwrap()]);
        assert_eq!(format!("{:x}", Sha256::digest(fs::read(diff).unwrap())), EMPTY, "{name}");
        assert_eq!(store.does(&["layer", "changes", name]).stdout, "");
        assert_eq!(store.does(&["layer", "size", name]).stdout, "0\n");
    }
}

fn a_shared_parent_outlives_its_children(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    for name in ["one", "two"] {
        store.does(&["layer", "create", "--parent", "base", name]);
    }
    store.does(&["layer", "rm", "one"]);
    store.plyfs(&["layer", "rm", "base"]).exits(1).complains("layer 'two', which lies on it");
    let at = store.does(&["layer", "mount", "two"]).stdout;
    let text = fs::read_to_string(std::path::Path::new(at.trim_end()).join("d/b")).unwrap();
    assert_eq!(text, "two\n");
    store.does(&["layer", "umount", "two"]);
    store.does(&["layer", "rm", "two"]);
    store.does(&["check"]);
    store.does(&["layer", "rm", "base"]);
}

fn a_changed_file_is_not_given_back(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    let file = store.0.own("base").join("d/b");
    fs::write(&file, "TWO\n").unwrap();
    let diff = store.0.sandbox.at("diff.tar");
    store.plyfs(&["layer", "diff", "base", "-o", diff.to_str().unwrap()]).exits(1).complains("d/b");
    assert!(!diff.exists());
}

fn a_layer_without_the_record_of_its_archive_is_still_seen(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    fs::remove_file(store.0.root().join("layers/base/tar-split.gz")).unwrap();
    store.does(&["layer", "create", "--parent", "base", "child"]);
    for name in ["base", "child"] {
        let at = store.does(&["layer", "mount", name]).stdout;
        assert!(std::path::Path::new(at.trim_end()).join("d/c").exists(), "{name}");
        store.does(&["layer", "umount", name]);
    }
    assert_eq!(store.does(&["layer", "size", "base"]).stdout, "14\n");
    store.does(&["layer", "changes", "base"]).says("A /d/c");
    store
        .plyfs(&["layer", "diff", "base", "-o", "/dev/null"])
        .exits(1)
        .complains("tar-split.gz is missing");
}

fn a_change_that_keeps_size_and_time_is_told(store: &driver_kit::Store) {
    let store = Box_(store);
    let tree = tree(store.0);
    // Long before anything is copied.
    Cmd::new("touch")
        .args(["-d", "@1000000000"])
        .arg(tree.join("a"))
        .arg(tree.join("d/b"))
        .succeeds();
    store.fill("base", None, &tree);
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let at = store.does(&["layer", "mount", "box"]).stdout;
    let work = r#"cd "$2" && cp -p a "$1" && printf 'eno\n' > a && touch -r "$1" a &&
        cp -p d/b d/n && printf 'owt\n' > d/n && touch -r d/b d/n && mv d/n d/b"#;
    let kept = store.0.sandbox.at("kept");
    Cmd::new("sh").args(["-c", work, "sh"]).arg(kept).arg(at.trim_end()).succeeds();
    store.does(&["layer", "umount", "box"]);
    assert_eq!(store.does(&["layer", "changes", "box"]).stdout, "C /a\nC /d\nC /d/b\n");
    assert_eq!(store.does(&["layer", "size", "box"]).stdout, "8\n");
}

fn a_pipe_is_written_to_and_stays_one(store: &driver_kit::Store) {
    let store = Box_(store);
    let archive = store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    for (name, length) in [("base", fs::metadata(archive).unwrap().len()), ("box", 1024)] {
        let pipe = store.0.sandbox.at(format!("pipe-{name}"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let from = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(from).unwrap().len());
        store.does(&["layer", "diff", name, "-o", pipe.to_str().unwrap()]);
        assert_eq!(reader.join().unwrap() as u64, length, "{name}");
        assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fs::metadata(&pipe).unwrap().file_type()));
    }
}

every_driver! {
    pipe, a_pipe_is_written_to_and_stays_one;
    kept_times, a_change_that_keeps_size_and_time_is_told;
    empty_layer, an_empty_layer_has_the_digest_that_all_know;
    shared_parent, a_shared_parent_outlives_its_children;
    changed_file, a_changed_file_is_not_given_back;
    no_split, a_layer_without_the_record_of_its_archive_is_still_seen;
}
