//! `apply(diff(x)) == x`, with every driver, over random trees and random work on them; and the record of an archive gives
//! back its bytes.

use std::path::{Path, PathBuf};

use plyfs::layer::apply::Limits;
use plyfs::layer::{diff, split};

use crate::common::case::{Taste, random_ops};
use crate::common::layer::{Dialect, Generator, Layer, What};
use crate::common::model::{Model, Who};
use crate::common::ops::{Op, Target};
use crate::common::plain::Plain;
use crate::common::rng::Rng;
use crate::common::tree::Tree;
use crate::driver_kit::{Store, id};
use crate::every_driver;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SEEDS: u64 = 12;
/// Attempts to make a failing case smaller.
const PATIENCE: usize = 80;

/// A tree, and what is done to it.
#[derive(Clone)]
struct Case {
    tree: Layer,
    ops: Vec<Op>,
}

impl Case {
    fn random(seed: u64) -> Case {
        let (who, mut rng) = (Who::me(), Rng::new(seed));
        let mut tree = Generator { rng: &mut rng, names: &NAMES, who }.layer();
        // It is a whole tree: nothing lies below it.
        tree.items.retain(|_, item| item.what != What::Whiteout);
        for item in tree.items.values_mut() {
            if let What::Dir { opaque } = &mut item.what {
                *opaque = false;
            }
        }
        let taste = Taste { ops: 100, reopen: false, escapes: false, ..Taste::default() };
        let model = Model::merge(&[Layer::empty(who), tree.clone()], who);
        let ops = random_ops(&mut rng, &NAMES, model, taste);
        Case { tree, ops }
    }

    /// With fewer operations, as long as it `fails`.
    fn shrunk(mut self, fails: impl Fn(&Case) -> bool) -> Case {
        let (mut left, mut size) = (PATIENCE, self.ops.len() / 2);
        while size > 0 {
            let mut at = 0;
            while at < self.ops.len() && left > 0 {
                left -= 1;
                let mut fewer = self.clone();
                fewer.ops.drain(at..(at + size).min(fewer.ops.len()));
                if fails(&fewer) { self = fewer } else { at += size }
            }
            size /= 2;
        }
        self
    }
}

/// What a layer shows.
fn seen(store: &Store, name: &str) -> Result<Tree, String> {
    Ok(told(store, store.see(name, Tree::read)?))
}

/// What of a tree an archive tells: nothing of the root, and no attributes that are the administrator's. Images of the legacy
/// driver share files, and count the names in all of them; the index of `fuse-overlay` counts those that a mount shows.
fn told(store: &Store, mut tree: Tree) -> Tree {
    tree.nodes.remove("");
    for node in tree.nodes.values_mut() {
        node.xattrs.retain(|name, _| !name.starts_with("trusted."));
        if store.driver.name().ends_with("overlay") {
            node.meta.nlink = 0;
        }
    }
    tree
}

/// Fills a layer, and puts the archive together again from what the layer has.
fn fill(store: &Store, name: &str, archive: &[u8]) -> Result<(), String> {
    let mut record = Vec::new();
    let limits = Limits::default();
    let applied = store.driver.apply(&id(name), &mut &*archive, &limits, Some(&mut record));
    applied.map_err(|e| format!("apply to {name}: {e}"))?;
    let files = store.driver.files(&id(name)).map_err(|e| e.to_string())?;
    let mut again = Vec::new();
    split::assemble(&mut record.as_slice(), &*files, &mut again).map_err(|e| e.to_string())?;
    if again == archive { Ok(()) } else { Err(format!("{name} gives another archive back")) }
}

fn same(what: &str, want: &Tree, got: &Tree) -> Result<(), String> {
    match want == got {
        true => Ok(()),
        false => Err(format!("{what}:\n{}", want.diff(got, ("made", "found")))),
    }
}

/// Plays a case in new layers: the tree becomes a layer, the work one on it, and its difference a third, which has to show
/// the same.
fn play(store: &Store, case: &Case) -> Result<(), String> {
    let who = Who::me();
    let source = store.sandbox.dir("source");
    std::fs::remove_dir_all(&source).unwrap();
    std::fs::create_dir(&source).unwrap();
    case.tree.write(&source, Dialect::Device, who.space()).unwrap();
    let mut archive = Vec::new();
    let spec = diff::Spec { upper: source.clone(), lowers: Vec::new(), user_marks: true };
    diff::write(&spec, &mut archive).map_err(|e| e.to_string())?;
    store.read_only("base", None);
    fill(store, "base", &archive)?;
    let want = told(store, Tree::read(&source)?);
    same("the tree", &want, &seen(store, "base")?)?;
    let (first, second) = case.ops.split_at(case.ops.len() / 2);
    difference(store, ("base", "work", "copy"), first)?;
    // An image of the legacy driver is never written to.
    if store.driver.name() != "overlay" {
        difference(store, ("work", "more", "copy-more"), second)?;
    }
    Ok(())
}

/// Does something in a new layer, and makes another of what that changed.
fn difference(
    store: &Store,
    (parent, work, copy): (&str, &str, &str),
    ops: &[Op],
) -> Result<(), String> {
    store.read_write(work, Some(parent));
    store.see(work, |root: &Path| {
        let mut target = Plain::open(root).unwrap();
        // What a driver's mount refuses, it refuses.
        ops.iter().for_each(|op| drop(target.apply(op)));
        target.close_all();
    });
    let want = seen(store, work)?;
    let archive = store.diff(work, Some(parent));
    if archive != store.diff(work, Some(parent)) {
        return Err("two differences differ".to_owned());
    }
    store.read_only(copy, Some(parent));
    fill(store, copy, &archive)?;
    same(work, &want, &seen(store, copy)?)?;
    let changes = (store.changes(work, Some(parent)), store.changes(copy, Some(parent)));
    // Of two names that the kernel's overlay parts, its upper directory has the one that changed; two trees differ in both.
    if store.driver.name() != "overlay" && changes.0 != changes.1 {
        return Err(format!("changes made {:?}\nfound {:?}", changes.0, changes.1));
    }
    Ok(())
}

/// [`play`], with nothing left.
fn outcome(store: &Store, case: &Case) -> Result<(), String> {
    let played = play(store, case);
    for name in ["copy-more", "more", "copy", "work", "base"] {
        store.driver.remove(&id(name)).unwrap();
    }
    played
}

/// Renames as a program does that copies where it cannot.
fn moved(from: PathBuf, to: PathBuf) {
    if std::fs::rename(&from, &to).is_err() {
        let done = std::process::Command::new("mv").args([&from, &to]).status().unwrap();
        assert!(done.success());
    }
}

fn directories_that_are_moved_out_of_moved_ones(store: &Store) -> Result<(), String> {
    store.read_write("base", None);
    for (path, text) in [("a/b/f", "right"), ("c/b/f", "wrong"), ("c/b/other", "other")] {
        let path = store.own("base").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    store.read_write("work", Some("base"));
    store.see("work", |root| {
        moved(root.join("c"), root.join("e"));
        moved(root.join("a"), root.join("c"));
        std::fs::write(root.join("c/b/new"), "new").unwrap();
    });
    store.read_write("more", Some("work"));
    store.see("more", |root| moved(root.join("c/b"), root.join("d")));
    let want = seen(store, "more")?;
    assert_eq!(want.nodes.keys().filter(|path| path.starts_with("d/")).count(), 2, "{want}");
    let archive = store.diff("more", Some("work"));
    store.read_only("copy-more", Some("work"));
    fill(store, "copy-more", &archive)?;
    same("what was moved", &want, &seen(store, "copy-more")?)
}

every_driver! {
    moved_twice, |store| {
        if store.driver.name() == "overlay" {
            return println!("skipped: an image of the legacy driver is never written to");
        }
        directories_that_are_moved_out_of_moved_ones(store).unwrap();
    };
    random_work, |store| {
        for seed in 0..SEEDS {
            let case = Case::random(seed);
            let Err(error) = outcome(store, &case) else { continue };
            let case = case.shrunk(|case| outcome(store, case).is_err());
            let small = outcome(store, &case).err().unwrap_or(error);
            let ops: String = case.ops.iter().map(|op| format!("    {op}\n")).collect();
            panic!("seed {seed}: {small}\non\n{}after\n{ops}", case.tree);
        }
    };
}
