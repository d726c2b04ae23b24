//! `plyfs run`: a command in a writable view that is thrown away, what is said of it, and how it ends.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::cmd::Cmd;
use crate::common::needs::Need;
use crate::common::sandbox::Sandbox;
use crate::needs;

/// Root mounts by himself, and others in a namespace of their own.
macro_rules! can_run {
    () => {
        if !Need::Fuse.met() {
            needs!(AnyUserNs);
        }
    };
}

/// A directory with the file `a` and the directory `d`.
struct Place {
    sandbox: Sandbox,
    low: PathBuf,
}

impl Place {
    fn new() -> Place {
        let sandbox = Sandbox::new();
        let low = sandbox.dir("low");
        fs::write(low.join("a"), "old\n").unwrap();
        fs::create_dir(low.join("d")).unwrap();
        Place { sandbox, low }
    }

    fn run(&self, words: &[&str], script: &str) -> Cmd {
        let cmd = Cmd::plyfs().arg("run").arg("--lower").arg(&self.low).args(words);
        cmd.args(["--", "sh", "-c", script]).cwd(&self.low)
    }

    fn is_as_before(&self) {
        assert_eq!(fs::read_to_string(self.low.join("a")).unwrap(), "old\n");
        assert_eq!(fs::read_dir(&self.low).unwrap().count(), 2);
    }
}

#[test]
fn a_view_of_the_root_is_written_and_thrown_away() {
    can_run!();
    let script = "rm /etc/hostname; echo hi >/etc/plyfs-new; cat /etc/plyfs-new; id -u";
    let done = Cmd::plyfs().args(["run", "--lower", "/", "--", "sh", "-c", script]).succeeds();
    done.says("hi\n0\n").says("D /etc/hostname\n").says("A /etc/plyfs-new\n");
    assert!(!fs::exists("/etc/plyfs-new").unwrap() && fs::exists("/etc/hostname").unwrap());
}

#[test]
fn a_directory_is_seen_in_its_place() {
    can_run!();
    let place = Place::new();
    let done = place.run(&[], "pwd; cat a; echo new >a; echo x >d/f; cat a d/f").succeeds();
    let here = place.low.display();
    done.says(&format!("{here}\nold\nnew\nx\n")).says("C /a\n").says("A /d/f\n");
    place.is_as_before();
}

#[test]
fn it_ends_as_the_command_does() {
    can_run!();
    let place = Place::new();
    for (script, status) in
        [("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("exit 125", 125)]
    {
        let done = place.run(&[], &format!("echo x >new; {script}")).exits(status);
        done.says("A /new\n");
    }
    fs::write(place.low.join("d/text"), "no program").unwrap();
    let run = |words: &[&str]| {
        // A directory that cannot be searched may have it.
        let plyfs = Cmd::plyfs().env("PATH", "/usr/bin:/bin");
        plyfs.arg("run").arg("--lower").arg(&place.low).args(words).cwd(&place.low)
    };
    run(&["--", "./d/text"]).exits(126).complains("./d/text");
    run(&["--", "plyfs-none"]).exits(127).complains("plyfs-none");
    run(&["--lower", "/nowhere", "--", "true"]).exits(125).complains("/nowhere");
    run(&["--env", "novalue", "--", "true"]).exits(2).complains("expected NAME=VALUE");
}

/// Whoever reads the list may have seen enough, and a full disk is not the command's doing.
#[test]
fn a_list_that_nobody_takes_changes_no_status() {
    can_run!();
    let place = Place::new();
    let run = |script: &str, out: Stdio, errors: Stdio| {
        let mut run = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        run.args(["run", "--lower"]).arg(&place.low).args(["--", "sh", "-c", script]);
        run.current_dir(&place.low)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .status()
            .unwrap()
            .code()
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for (script, status, when_full) in [("echo >new; exit 3", 3, 3), ("echo >new", 0, 1)] {
        assert_eq!(run(script, closed(), Stdio::null()), Some(status));
        assert_eq!(run(script, full(), Stdio::null()), Some(when_full));
        // What is said of that has nobody to read it either.
        assert_eq!(run(script, full(), closed()), Some(when_full));
    }
}

#[test]
fn the_list_is_json_or_nothing() {
    can_run!();
    let place = Place::new();
    assert_eq!(place.run(&["--quiet"], "echo x >new").succeeds().stdout, "");
    let told = place.run(&["--json"], "echo x >new; exit 4").exits(4).stdout.clone();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["status"], &told["upper"]), (&4.into(), &Value::Null));
    assert_eq!(told["changes"][0]["path"], "/new", "{told}");
}

#[test]
fn changes_are_kept_where_that_is_asked_for() {
    can_run!();
    let place = Place::new();
    let upper = place.sandbox.at("changes");
    let words = ["--upper", upper.to_str().unwrap()];
    place.run(&words, "echo new >a; rmdir d").succeeds().says("C /a\nD /d\n");
    assert_eq!(fs::read_to_string(upper.join("a")).unwrap(), "new\n");
    // The next one goes on from there.
    place.run(&words, "cat a; ls").succeeds().says("new\na\n");
    Cmd::plyfs()
        .arg("changes")
        .arg("--lower")
        .arg(&place.low)
        .arg(&upper)
        .succeeds()
        .says("C /a\nD /d\n");
    place.is_as_before();
    let kept = place.run(&["--keep"], "echo x >new").succeeds();
    let at = kept.stderr.trim_end().strip_prefix("plyfs: changes are kept in ").unwrap().to_owned();
    assert_eq!(fs::read_to_string(PathBuf::from(&at).join("new")).unwrap(), "x\n");
    let state = PathBuf::from(at).parent().unwrap().to_path_buf();
    fs::remove_dir_all(state).unwrap();
}

#[test]
fn the_command_gets_what_it_is_given() {
    can_run!();
    let place = Place::new();
    fs::set_permissions(place.low.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = place.low.join("d");
    let words = ["-e", "WHO=me", "-w", dir.to_str().unwrap(), "--hostname", "inside"];
    let done = place.run(&words, "echo $WHO; pwd; uname -n; echo $$").succeeds();
    done.says(&format!("me\n{}\ninside\n", dir.display()));
}
