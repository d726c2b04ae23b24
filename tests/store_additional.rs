//! Layers of additional stores: seen, mounted to be read, lain on, given back; and nothing there is changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::common::cmd::{Cmd, Done};
use crate::common::mount::own_namespace;
use crate::driver_kit;
use crate::store_kit::{Box_, tree};
use crate::{every_driver, needs};

/// A store, and another one of the same driver beside it.
pub(crate) struct Pair<'a> {
    pub(crate) own: Box_<'a>,
    pub(crate) other: PathBuf,
}

/// What a change would show in: everything but the times of reading.
pub(crate) type Facts = BTreeMap<PathBuf, (u32, u32, u64, u64, (i64, i64), Option<PathBuf>)>;

pub(crate) fn facts(root: &Path) -> Facts {
    let (mut facts, mut todo) = (Facts::new(), vec![root.to_path_buf()]);
    while let Some(path) = todo.pop() {
        let found = path.symlink_metadata().unwrap();
        let (owner, changed) = (found.uid(), (found.ctime(), found.ctime_nsec()));
        let link = fs::read_link(&path).ok();
        let one = (found.mode(), owner, found.nlink(), found.size(), changed, link);
        facts.insert(path.clone(), one);
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    facts
}

impl<'a> Pair<'a> {
    /// The other store has `base`, filled from `tree`, and `top` on it, which deletes one file and adds another.
    pub(crate) fn new(store: &'a driver_kit::Store) -> Pair<'a> {
        let pair = Pair { own: Box_(store), other: store.sandbox.at("other") };
        let base = store.sandbox.at("base.tar");
        Cmd::new("tar").arg("-cf").arg(&base).arg("-C").arg(tree(store)).arg(".").succeeds();
        let upper = store.sandbox.dir("top");
        fs::create_dir(upper.join("d")).unwrap();
        fs::write(upper.join("d/.wh.b"), "").unwrap();
        fs::write(upper.join("d/n"), "new\n").unwrap();
        let top = store.sandbox.at("top.tar");
        Cmd::new("tar").arg("-cf").arg(&top).arg("-C").arg(upper).arg(".").succeeds();
        pair.fill_there(&pair.other, "base", None, &base);
        pair.fill_there(&pair.other, "top", Some("base"), &top);
        pair
    }

    fn there(&self, root: &Path, words: &[&str]) -> Cmd {
        let run = self.own.0.sandbox.dir("run");
        let driver = self.own.0.driver.name();
        let cmd = Cmd::plyfs().env("XDG_RUNTIME_DIR", run).arg("--root").arg(root);
        cmd.args(["--driver", driver]).args(words)
    }

    pub(crate) fn fill_there(&self, root: &Path, id: &str, parent: Option<&str>, archive: &Path) {
        let mut words = vec!["layer", "create", "--read-only"];
        words.extend(parent.iter().flat_map(|parent| ["--parent", parent]));
        words.push(id);
        self.there(root, &words).succeeds();
        self.there(root, &["layer", "apply", id, archive.to_str().unwrap()]).succeeds();
    }

    /// A call on the own store, with additional ones.
    pub(crate) fn with(&self, others: &[&Path], words: &[&str]) -> Cmd {
        let mut given: Vec<String> = Vec::new();
        for other in others {
            given.extend([
                "--storage-opt".into(),
                format!("additionalimagestore={}", other.display()),
            ]);
        }
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        self.own.plyfs(&[&given[..], words].concat())
    }

    pub(crate) fn does(&self, words: &[&str]) -> Done {
        self.with(&[&self.other], words).succeeds()
    }

    pub(crate) fn mounted(&self, id: &str) -> PathBuf {
        PathBuf::from(self.does(&["layer", "mount", id]).stdout.trim_end())
    }

    pub(crate) fn archive(&self, id: &str) -> Vec<u8> {
        let path = self.own.0.sandbox.at("out.tar");
        self.does(&["layer", "diff", id, "-o", path.to_str().unwrap()]);
        fs::read(path).unwrap()
    }
}

/// Shows `from` at `to`, where nothing can be written.
fn bind_read_only(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    Cmd::new("mount").arg("--bind").arg(from).arg(to).succeeds();
    Cmd::new("mount").args(["-o", "remount,bind,ro"]).arg(to).succeeds();
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|x| x.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn layers_of_a_read_only_filesystem_are_seen_and_lain_on(store: &driver_kit::Store) {
    let mut pair = Pair::new(store);
    let before = facts(&pair.other);
    let fixed = store.sandbox.at("fixed");
    bind_read_only(&pair.other, &fixed);
    let other = std::mem::replace(&mut pair.other, fixed.clone());

    let list: serde_json::Value =
        serde_json::from_str(&pair.does(&["--json", "layer", "ls"]).stdout).unwrap();
    let from = |at: usize| (list[at]["id"].as_str().unwrap(), list[at]["store"].as_str().unwrap());
    assert_eq!(
        [from(0), from(1)],
        [("base", fixed.to_str().unwrap()), ("top", fixed.to_str().unwrap())]
    );
    pair.does(&["layer", "ls"]).says("STORE").says(fixed.to_str().unwrap());
    pair.does(&["layer", "exists", "top"]);
    assert_eq!(pair.does(&["layer", "size", "top"]).stdout, "4\n");
    pair.does(&["layer", "inspect", "top"]).says(fixed.to_str().unwrap());
    pair.does(&["driver", "status"]).says(&format!("Additional store: {}", fixed.display()));
    let changes = pair.does(&["layer", "changes", "top"]).stdout;
    assert_eq!(changes, "C /d\nD /d/b\nA /d/n\n");
    assert!(pair.archive("top") == fs::read(store.sandbox.at("top.tar")).unwrap());

    let at = pair.mounted("top");
    assert!(at.starts_with(store.root()), "{}", at.display());
    assert_eq!(names(&at.join("d")), ["c", "n"]);
    assert!(fs::write(at.join("d/c"), "x").is_err());
    assert_eq!(pair.mounted("top"), at, "it has two users");
    pair.with(&[&fixed], &["layer", "create", "top"]).exits(1).complains("in use");
    pair.does(&["layer", "umount", "top"]);
    pair.does(&["layer", "umount", "top"]);
    pair.with(&[&fixed], &["layer", "umount", "top"]).exits(1).complains("'top': not found");
    assert!(!at.exists());

    pair.does(&["layer", "create", "--parent", "top", "box"]);
    let at = pair.mounted("box");
    assert_eq!(names(&at.join("d")), ["c", "n"]);
    fs::write(at.join("d/c"), "mine\n").unwrap();
    fs::remove_file(at.join("a")).unwrap();
    pair.does(&["layer", "umount", "box"]);
    assert_eq!(pair.does(&["layer", "changes", "box"]).stdout, "D /a\nC /d\nC /d/c\n");
    assert!(!pair.archive("box").is_empty());
    pair.does(&["layer", "create", "--parent", "box", "above"]);
    pair.does(&["layer", "create", "--read-only", "--parent", "top", "filled"]);
    pair.does(&["layer", "apply", "filled", store.sandbox.at("top.tar").to_str().unwrap()]);
    assert!(pair.archive("filled") == fs::read(store.sandbox.at("top.tar")).unwrap());
    pair.does(&["check"]).says("nothing wrong");
    pair.does(&["prune"]).says("0 layers removed");
    for id in ["above", "box", "filled"] {
        pair.does(&["layer", "rm", id]);
    }
    assert_eq!(pair.does(&["--json", "layer", "ls"]).stdout.matches("\"id\"").count(), 2);
    Cmd::new("umount").arg(&fixed).succeeds();
    assert_eq!(facts(&other), before);
}

fn nothing_there_is_changed_although_it_could_be(store: &driver_kit::Store) {
    let pair = Pair::new(store);
    pair.there(&pair.other, &["layer", "create", "open"]).succeeds();
    // What only a sweep of its own store may delete.
    let home = store.driver.home().strip_prefix(store.root()).unwrap().to_path_buf();
    fs::create_dir(pair.other.join(&home).join(".new-left")).unwrap();
    fs::write(pair.other.join("pending/gone"), "remove").unwrap();
    let before = facts(&pair.other);
    let root = pair.other.to_str().unwrap();
    let archive = store.sandbox.at("base.tar");
    for words in [
        &["layer", "rm", "top"][..],
        &["layer", "apply", "top", archive.to_str().unwrap()],
        &["layer", "quota", "top", "--size", "1G"],
        &["layer", "create", "--parent", "open", "box"],
        &["layer", "mount", "open"],
    ] {
        let done = pair.with(&[&pair.other], words).exits(1);
        done.complains(root);
        assert_eq!(done.stderr.lines().count(), 1, "{words:?}: {}", done.stderr);
    }
    pair.does(&["layer", "create", "--parent", "top", "box"]);
    let at = pair.mounted("box");
    fs::write(at.join("d/c"), "mine\n").unwrap();
    fs::hard_link(at.join("d/n"), at.join("d/m")).unwrap();
    pair.does(&["layer", "umount", "box"]);
    let at = pair.mounted("base");
    assert!(fs::write(at.join("a"), "x").is_err());
    assert!(fs::remove_file(at.join("a")).is_err());
    pair.does(&["layer", "umount", "base"]);
    for words in
        [&["check", "--repair"][..], &["prune"], &["layer", "rm", "box"], &["driver", "cleanup"]]
    {
        pair.does(words);
    }
    assert!(pair.does(&["layer", "changes", "open"]).stdout.is_empty());
    assert_eq!(facts(&pair.other), before);
    assert_eq!(names(&store.root().join("pending")), [] as [&str; 0]);
}

fn our_names_hide_theirs_and_the_first_store_the_second(store: &driver_kit::Store) {
    let pair = Pair::new(store);
    let second = store.sandbox.at("second");
    let text = |id: &str, text: &str| {
        let dir = store.sandbox.dir(&format!("tree-{id}-{}", text.trim_end()));
        fs::write(dir.join("a"), text).unwrap();
        let archive = dir.with_extension("tar");
        Cmd::new("tar").arg("-cf").arg(&archive).arg("-C").arg(dir).arg(".").succeeds();
        archive
    };
    pair.fill_there(&second, "base", None, &text("base", "second\n"));
    pair.fill_there(&second, "more", None, &text("more", "more\n"));
    let both = [pair.other.as_path(), second.as_path()];
    let seen = |others: &[&Path], id: &str| {
        let at = pair.with(others, &["layer", "mount", id]).succeeds().stdout;
        let text = fs::read_to_string(Path::new(at.trim_end()).join("a")).unwrap();
        pair.with(others, &["layer", "umount", id]).succeeds();
        text
    };
    assert_eq!(seen(&both, "base"), "one\n");
    assert_eq!(seen(&[&second, &pair.other], "base"), "second\n");
    assert_eq!(seen(&both, "more"), "more\n");
    // A child stays on the layer it was made on, whatever has the name later.
    pair.with(&both, &["layer", "create", "--parent", "base", "child"]).succeeds();
    assert_eq!(seen(&[&second, &pair.other], "child"), "one\n");
    let own = text("base", "own\n");
    pair.with(&both, &["layer", "create", "--read-only", "base"]).succeeds();
    pair.with(&both, &["layer", "apply", "base", own.to_str().unwrap()]).succeeds();
    assert_eq!(seen(&both, "base"), "own\n");
    assert_eq!(seen(&both, "child"), "one\n");
    assert_eq!(pair.with(&both, &["layer", "changes", "child"]).succeeds().stdout, "");
    pair.with(&both, &["check"]).succeeds().says("nothing wrong");
    let list = pair.with(&both, &["layer", "ls"]).succeeds().stdout;
    assert_eq!(list.lines().filter(|line| line.starts_with("base ")).count(), 1, "{list}");
    pair.with(&both, &["layer", "rm", "base"]).succeeds();
    assert_eq!(seen(&both, "base"), "one\n");
}

fn a_store_that_vanishes_takes_its_children_only(store: &driver_kit::Store) {
    let pair = Pair::new(store);
    pair.own.fill("mine", None, &store.sandbox.at("tree"));
    pair.does(&["layer", "create", "--parent", "top", "box"]);
    pair.does(&["layer", "create", "--parent", "box", "above"]);
    pair.does(&["layer", "create", "--read-only", "--parent", "top", "empty"]);
    let at = pair.mounted("top");
    let moved = store.sandbox.at("moved");
    fs::rename(&pair.other, &moved).unwrap();
    let copies =
        store.driver.diffing(&driver_kit::id("mine")).unwrap() == plyfs::driver::Diffing::Naive;
    for others in [&[][..], &[pair.other.as_path()]] {
        let fails = |words: &[&str]| {
            let done = pair.with(others, words).exits(1);
            done.complains("lies on 'top' of the additional store");
            let errors = done.stderr.lines().filter(|line| !line.contains("there is none"));
            assert_eq!(errors.count(), 1, "{words:?}: {}", done.stderr);
        };
        fails(&["layer", "changes", "box"]);
        fails(&["layer", "diff", "box", "-o", "/dev/null"]);
        if !copies {
            fails(&["layer", "mount", "box"]);
            fails(&["layer", "mount", "above"]);
        }
        fails(&["layer", "apply", "empty", store.sandbox.at("top.tar").to_str().unwrap()]);
        pair.with(others, &["check"]).exits(1).says("lies on 'top' of the additional store");
        pair.with(others, &["layer", "ls"]).succeeds().says("mine").says("box");
        pair.with(others, &["layer", "mount", "mine"]).succeeds();
        pair.with(others, &["layer", "umount", "mine"]).succeeds();
    }
    pair.with(&[&pair.other], &["driver", "status"]).succeeds().says("(not there)");
    pair.with(&[], &["layer", "umount", "top"]).succeeds();
    assert!(!at.exists());
    pair.with(&[], &["layer", "umount", "top"]).exits(1).complains("'top': not found");
    // It is found wherever it is.
    let at = pair.with(&[&moved], &["layer", "mount", "above"]).succeeds().stdout;
    assert_eq!(names(&Path::new(at.trim_end()).join("d")), ["c", "n"]);
    pair.with(&[&moved], &["layer", "umount", "above"]).succeeds();
    pair.with(&[&moved], &["check"]).succeeds();
    // What was made anew is another layer.
    // Storage of nobody that has its name is none of its business.
    store.read_only("top", None);
    pair.with(&[], &["prune"]).succeeds().says("1 layer removed");
    pair.there(&moved, &["layer", "rm", "top"]).succeeds();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    pair.fill_there(&moved, "top", Some("base"), &store.sandbox.at("top.tar"));
    pair.with(&[&moved], &["layer", "changes", "box"]).exits(1).complains("which is not there");
    for id in ["above", "box", "empty"] {
        pair.with(&[], &["layer", "rm", id]).succeeds();
    }
}

fn a_store_on_a_third_one_needs_that_too(store: &driver_kit::Store) {
    let pair = Pair::new(store);
    let middle = store.sandbox.at("middle");
    let top = store.sandbox.at("top.tar");
    let option = format!("additionalimagestore={}", pair.other.display());
    let there =
        |words: &[&str]| pair.there(&middle, &[&["--storage-opt", &option], words].concat());
    there(&["layer", "create", "--read-only", "--parent", "base", "mid"]).succeeds();
    there(&["layer", "apply", "mid", top.to_str().unwrap()]).succeeds();
    pair.with(&[&middle], &["layer", "create", "--parent", "mid", "box"])
        .exits(1)
        .complains("lies on 'base'");
    let both = [middle.as_path(), pair.other.as_path()];
    pair.with(&both, &["layer", "create", "--parent", "mid", "box"]).succeeds();
    let at = pair.with(&both, &["layer", "mount", "box"]).succeeds().stdout;
    assert_eq!(names(&Path::new(at.trim_end()).join("d")), ["c", "n"]);
    pair.with(&both, &["layer", "umount", "box"]).succeeds();
    assert_eq!(
        pair.with(&both, &["layer", "changes", "mid"]).succeeds().stdout,
        "C /d\nD /d/b\nA /d/n\n"
    );
    pair.with(&both, &["check"]).succeeds();
}

fn what_ours_lie_on_is_checked_there(store: &driver_kit::Store) {
    let pair = Pair::new(store);
    pair.does(&["layer", "create", "--parent", "top", "box"]);
    pair.does(&["layer", "create", "--parent", "top", "more"]);
    pair.does(&["check"]).says("4 layers, nothing wrong");
    let theirs = driver_kit::open(store.driver.name(), &pair.other);
    let file = theirs.parts(&driver_kit::id("base")).unwrap().own.join("d/c");
    fs::write(&file, "THREE\n").unwrap();
    let done = pair.with(&[&pair.other], &["check", "--repair"]).exits(1);
    done.says("layer 'base': file 'd/c'").says("put it right in its store").says("4 layers");
    assert_eq!(fs::read_to_string(file).unwrap(), "THREE\n");
}

fn an_unfinished_fill_on_theirs_is_undone(store: &driver_kit::Store) {
    let pair = Pair::new(store);
    pair.does(&["layer", "create", "--read-only", "--parent", "top", "filled"]);
    let archive = store.sandbox.at("bad.tar");
    fs::write(&archive, "no archive").unwrap();
    pair.with(&[&pair.other], &["layer", "apply", "filled", archive.to_str().unwrap()]).exits(1);
    fs::write(store.root().join("pending/filled"), "apply").unwrap();
    // Without the store it cannot be made again, and waits.
    pair.with(&[], &["layer", "exists", "filled"]).succeeds();
    assert!(store.root().join("pending/filled").exists());
    pair.does(&["layer", "exists", "filled"]);
    assert!(!store.root().join("pending/filled").exists());
    pair.does(&["layer", "apply", "filled", store.sandbox.at("top.tar").to_str().unwrap()]);
    pair.does(&["check"]).says("nothing wrong");
}

every_driver! {
    read_only_filesystem, layers_of_a_read_only_filesystem_are_seen_and_lain_on;
    nothing_changed, nothing_there_is_changed_although_it_could_be;
    names_hide, our_names_hide_theirs_and_the_first_store_the_second;
    vanished, a_store_that_vanishes_takes_its_children_only;
    third, a_store_on_a_third_one_needs_that_too;
    checked, what_ours_lie_on_is_checked_there;
    unfinished, an_unfinished_fill_on_theirs_is_undone;
}

#[test]
fn wrong_stores_are_refused_by_name() {
    needs!(Root, KernelOverlay);
    own_namespace();
    let sandbox = crate::common::sandbox::Sandbox::new();
    let (own, copies) = (sandbox.at("own"), sandbox.at("copies"));
    let on = |root: &Path, driver: &str, words: &[&str]| {
        let run = sandbox.dir("run");
        let cmd = Cmd::plyfs().env("XDG_RUNTIME_DIR", run).arg("--root").arg(root);
        cmd.args(["--driver", driver]).args(words)
    };
    on(&copies, "vfs", &["layer", "create", "a"]).succeeds();
    for (value, why) in [
        (copies.to_str().unwrap(), "those of driver vfs, which overlay2 does not read"),
        (own.to_str().unwrap(), "is this store itself"),
        ("", "names no directory"),
    ] {
        on(&own, "overlay2", &["layer", "create", "x"]).run();
        let option = format!("additionalimagestore={value}");
        on(&own, "overlay2", &["--storage-opt", &option, "layer", "ls"]).exits(1).complains(why);
    }
    let option = format!("nonsense.additionalimagestore={}", copies.display());
    on(&own, "overlay2", &["--storage-opt", &option, "layer", "ls"]).exits(1).complains("nonsense");
    let option = format!("vfs.additionalimagestore={}", copies.display());
    on(&own, "overlay2", &["--storage-opt", &option, "layer", "ls"]).succeeds();
}

#[test]
fn both_drivers_of_one_format_read_the_stores_of_the_other() {
    needs!(Root, KernelOverlay, Fuse);
    for (one, other) in [("overlay2", "fuse-overlay"), ("fuse-overlay", "overlay2")] {
        let mut store = driver_kit::Store::open(one);
        let pair = Pair::new(&store);
        let theirs = pair.other.clone();
        store.reopen(other);
        let pair = Pair { own: Box_(&store), other: theirs };
        pair.does(&["layer", "create", "--parent", "top", "box"]);
        assert_eq!(names(&pair.mounted("box").join("d")), ["c", "n"]);
        pair.does(&["layer", "umount", "box"]);
        assert_eq!(names(&pair.mounted("top").join("d")), ["c", "n"]);
        pair.does(&["layer", "umount", "top"]);
    }
}

/// Runs as a user whom nothing belongs to, as root of a namespace with one id.
pub(crate) fn as_user(words: &[&str]) -> Cmd {
    let user = ["--reuid=54321", "--regid=54321", "--clear-groups", "unshare", "-Urm"];
    Cmd::new("setpriv").args(user).args(words)
}

#[test]
fn a_store_of_somebody_else_is_seen_by_a_user_who_may_read_it() {
    needs!(UserNs, Root, KernelOverlay, Fuse);
    own_namespace();
    for driver in ["overlay2", "fuse-overlay"] {
        let store = driver_kit::Store::open(driver);
        let pair = Pair::new(&store);
        Cmd::new("chmod").args(["-R", "a+rX"]).arg(&pair.other).succeeds();
        let before = facts(&pair.other);
        let home = store.sandbox.dir("home");
        std::os::unix::fs::chown(&home, Some(54321), Some(54321)).unwrap();
        let program = format!(
            "set -e; p() {{ {} --root {h}/own --driver {driver} --storage-opt additionalimagestore={} \"$@\"; }}; \
             export XDG_RUNTIME_DIR={h}/run; mkdir -p {h}/run; p layer create --parent top box; at=$(p layer mount box); \
             ls $at/d; cat $at/d/n; echo x >$at/new; p layer umount box; p layer changes box; at=$(p layer mount top); \
             ls $at/d; ! touch $at/d/c 2>/dev/null; p layer umount top; p layer diff top | wc -c; ! p layer rm top; p check",
            env!("CARGO_BIN_EXE_plyfs"),
            pair.other.display(),
            h = home.display(),
        );
        let done = as_user(&["sh", "-c", &program]).succeeds();
        let size = fs::metadata(store.sandbox.at("top.tar")).unwrap().len();
        let wanted = format!("c\nn\nnew\nA /new\nc\nn\n{size}\n3 layers, nothing wrong\n");
        assert_eq!(done.stdout, wanted, "{}", done.stderr);
        assert_eq!(facts(&pair.other), before);
    }
}
