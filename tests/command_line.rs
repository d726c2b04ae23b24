//! The verbs that need neither a store nor a mount: what an upper directory holds, and what is generated.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::cmd::Cmd;
use crate::common::sandbox::Sandbox;
use crate::semantics_kit::names;

/// A lower directory, and an upper one that adds, changes and deletes.
fn layers(sandbox: &Sandbox) -> (PathBuf, PathBuf) {
    let (low, up) = (sandbox.dir("low"), sandbox.dir("up"));
    for (dir, files) in [(&low, ["a", "b", "d/e"]), (&up, ["a", ".wh.b", "d/new"])] {
        fs::create_dir(dir.join("d")).unwrap();
        for file in files {
            fs::write(dir.join(file), file.len().to_string() + dir.to_str().unwrap()).unwrap();
        }
    }
    (low, up)
}

fn plyfs(words: &[&str], low: &Path, up: &Path) -> Cmd {
    Cmd::plyfs().args(words).arg("--lower").arg(low).arg(up)
}

#[test]
fn changes_are_listed_and_upper_is_only_read() {
    let sandbox = Sandbox::new();
    let (low, up) = layers(&sandbox);
    let listed = plyfs(&["changes"], &low, &up).succeeds();
    assert_eq!(listed.stdout, "C /a\nD /b\nC /d\nA /d/new\n");
    let told = plyfs(&["changes", "--json"], &low, &up).succeeds().stdout.clone();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told[1]["kind"], &told[1]["path"]), (&"D".into(), &"/b".into()));
    assert_eq!(names(&up), [".wh.b", "a", "d"]);
    let nowhere = sandbox.at("nowhere");
    for words in [&["changes"][..], &["diff"]] {
        let done = plyfs(words, &low, &nowhere).exits(1);
        done.complains(nowhere.to_str().unwrap());
        assert_eq!((done.stderr.lines().count(), done.stdout.as_str()), (1, ""));
    }
}

#[test]
fn a_difference_is_the_same_archive_each_time_and_whole_or_not_there() {
    let sandbox = Sandbox::new();
    let (low, up) = layers(&sandbox);
    let out = sandbox.at("layer.tar");
    let to = |out: &Path| plyfs(&["diff", "-o", out.to_str().unwrap()], &low, &up);
    to(&out).succeeds();
    let listed = Cmd::new("tar").arg("-tf").arg(&out).succeeds().stdout.clone();
    assert_eq!(listed.lines().collect::<Vec<_>>(), [".wh.b", "a", "d/", "d/new"]);
    let first = fs::read(&out).unwrap();
    to(&out).succeeds();
    assert!(fs::read(&out).unwrap() == first);
    let stream = |out: File| {
        let mut diff = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        diff.args(["diff", "--lower"]).arg(&low).arg(&up).stdout(out);
        let done = diff.stdin(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let piped = sandbox.at("piped.tar");
    assert_eq!(stream(File::create(&piped).unwrap()), (Some(0), String::new()));
    assert!(fs::read(&piped).unwrap() == first);
    // What was there stays, and nothing half-made comes.
    let before = names(sandbox.at(""));
    to(&sandbox.at("none/layer.tar")).exits(1).complains("none");
    let (status, said) = stream(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!((status, said.lines().count()), (Some(1), 1), "{said}");
    assert_eq!(names(sandbox.at("")), before);
    assert!(fs::read(&out).unwrap() == first);
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        Cmd::plyfs().args(["generate", "completions", shell]).succeeds().says("dedup");
    }
    Cmd::plyfs().args(["generate", "completions", "tcsh"]).exits(2).complains("tcsh");
    let dir = sandbox.dir("man");
    Cmd::plyfs().args(["generate", "man"]).arg(&dir).succeeds();
    assert!(names(&dir).contains(&"plyfs-layer-apply.1".to_owned()), "{:?}", names(&dir));
    let page = fs::read_to_string(dir.join("plyfs-layer-apply.1")).unwrap();
    assert!(page.contains("window") && page.contains(".TH"), "{page}");
    Cmd::plyfs().args(["generate", "man"]).arg(sandbox.at("none")).exits(1).complains("none");
}

#[test]
fn what_is_no_mount_is_not_taken_away() {
    let sandbox = Sandbox::new();
    let dir = sandbox.dir("dir");
    let done = Cmd::plyfs().arg("umount").arg(&dir).exits(1);
    done.complains(dir.to_str().unwrap()).complains("hint: findmnt -t fuse.plyfs");
    Cmd::plyfs().arg("umount").arg(sandbox.at("none")).exits(1).complains("none");
}
