//! Copies of layers where there are additional stores: of ours that lie on theirs, and not of theirs.

use std::fs;

use crate::driver_kit;
use crate::every_driver;
use crate::store_additional::{Pair, facts, names};

/// Beside what the other store has, `box` on its `top`, with a file of its own.
fn with_box(store: &driver_kit::Store) -> Pair<'_> {
    let pair = Pair::new(store);
    pair.does(&["layer", "create", "--parent", "top", "box"]);
    fs::write(pair.mounted("box").join("d/w"), "written\n").unwrap();
    pair.does(&["layer", "umount", "box"]);
    pair
}

fn ours_on_theirs_are_copied(store: &driver_kit::Store) {
    let pair = with_box(store);
    let before = facts(&pair.other);
    pair.does(&["layer", "create", "--read-only", "--parent", "top", "filled"]);
    pair.does(&["layer", "apply", "filled", store.sandbox.at("top.tar").to_str().unwrap()]);
    for (template, copy) in [("box", "more"), ("filled", "again"), ("more", "most")] {
        pair.does(&["layer", "create", "--template", template, copy]);
    }
    let changes = |id: &str| pair.does(&["layer", "changes", id]).stdout;
    assert_eq!(changes("box"), "C /d\nA /d/w\n");
    assert_eq!(changes("most"), changes("box"));
    assert!(pair.archive("again") == fs::read(store.sandbox.at("top.tar")).unwrap());
    let at = pair.mounted("most");
    assert_eq!(names(&at.join("d")), ["c", "n", "w"]);
    fs::write(at.join("d/w"), "changed\n").unwrap();
    pair.does(&["layer", "umount", "most"]);
    assert_eq!(fs::read_to_string(pair.mounted("box").join("d/w")).unwrap(), "written\n");
    pair.does(&["layer", "umount", "box"]);
    for id in ["box", "more", "filled"] {
        pair.does(&["layer", "rm", id]);
    }
    pair.does(&["check"]).says("nothing wrong");
    assert_eq!(facts(&pair.other), before);
}

fn what_is_not_copied_is_said(store: &driver_kit::Store) {
    let pair = with_box(store);
    let before = facts(&pair.other);
    let refused = |words: &[&str], why: &str| {
        let words = [&["layer", "create"], words, &["new"]].concat();
        let done = pair.with(&[&pair.other], &words).exits(1);
        done.complains(why).complains(pair.other.to_str().unwrap());
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    };
    refused(&["--template", "top"], "only layers of this store are copied");
    let owners = "lies on layer 'top' of the additional store";
    refused(&["--template", "box", "--uidmap", "0:1000:10"], owners);
    refused(&["--template", "box", "--parent", "base"], owners);
    // A name of ours hides the parent, and is another layer.
    pair.does(&["layer", "create", "top"]);
    refused(&["--template", "box"], owners);
    pair.does(&["layer", "rm", "top"]);
    pair.does(&["layer", "create", "--template", "box", "new"]);
    pair.does(&["check"]).says("nothing wrong");
    assert_eq!(facts(&pair.other), before);
}

fn a_mount_counts_without_the_store_below(store: &driver_kit::Store) {
    let pair = with_box(store);
    pair.mounted("box");
    let run = store.root().join("run");
    assert!(names(&run).iter().any(|name| name.starts_with("box.")));
    pair.with(&[], &["layer", "rm", "box"]).exits(1).complains("layer 'box': in use by its mount");
    let create = ["layer", "create", "--template", "box", "new"];
    pair.with(&[], &create).exits(1).complains("name where that store is now");
    pair.with(&[], &["layer", "umount", "box"]).succeeds();
    pair.with(&[], &["layer", "umount", "box"]).exits(1).complains("'box': not found");
    pair.with(&[], &["layer", "rm", "box"]).succeeds();
}

every_driver! {
    copied, ours_on_theirs_are_copied;
    not_copied, what_is_not_copied_is_said;
    counted, a_mount_counts_without_the_store_below;
}
