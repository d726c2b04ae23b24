//! An archive that a writer could have written, read by us, by GNU tar and by Python's tarfile.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use plyfs::layer::apply::{self, Limits, Owners, Target, Whiteouts};

use super::generate::{self, Entry, Feed};
use super::known::Known;
use super::place::{empty, user_marks};
use super::tree::Tree;

/// The bytes choose entries and how they are written.
pub fn run(scratch: &Path, data: &[u8]) {
    empty(scratch);
    let privileged = !user_marks(scratch);
    let mut feed = Feed(data);
    let entries = generate::entries(&mut feed, privileged);
    // The ways to write them are chosen by the same bytes.
    let archive = generate::write(&entries, &mut Feed(data));
    compare(scratch, &entries, &archive, privileged);
    empty(scratch);
}

fn compare(scratch: &Path, entries: &[Entry], archive: &[u8], privileged: bool) {
    let at = scratch.join("archive.tar");
    fs::write(&at, archive).expect("written");
    let dir = |name: &str| {
        let dir = scratch.join(name);
        fs::create_dir(&dir).expect("made");
        dir
    };
    let ours = dir("ours");
    let owners = if privileged { Owners::Set } else { Owners::Ignore };
    let (belief, whiteouts) = (plyfs::layer::Belief::standing(), Whiteouts::Remove);
    let target = Target { root: ours.clone(), lowers: Vec::new(), belief, whiteouts, owners };
    let applied = apply::apply(&mut &archive[..], &target, &Limits::default(), None);
    let gnu = gnu(&at, &dir("gnu"));
    let known = Known::of(entries);
    match (&applied, &gnu) {
        (Ok(_), Ok(())) => {}
        (Err(_), Err(_)) => return,
        (Err(error), Ok(())) => {
            let why = error.to_string();
            assert!(known.refused(&why), "refused here and not by GNU tar: {why}\n{entries:#?}");
            return;
        }
        (Ok(_), Err(why)) => {
            assert!(known.fails(), "refused by GNU tar and not here: {why}\n{entries:#?}");
        }
    }
    let ours = Tree::read(&ours, &|_| false);
    let theirs = Tree::read(&scratch.join("gnu"), &|_| false);
    let (one, two) = known.gnu(ours.clone(), theirs, gnu.is_err());
    same("GNU tar", &one, &two);
    if !known.plain {
        return;
    }
    match python(&at, &dir("python")) {
        None => {}
        Some(said) if said == "done" => {
            let theirs = Tree::read(&scratch.join("python"), &|_| false);
            if let Some((one, two)) = known.python(ours, theirs) {
                same("Python", &one, &two);
            }
        }
        Some(said) => panic!("Python and nobody else: {said}\n{entries:#?}"),
    }
}

fn same(who: &str, ours: &Tree, theirs: &Tree) {
    assert!(
        ours == theirs,
        "{who} makes something else (theirs second):\n{}",
        ours.differences(theirs)
    );
}

/// Has GNU tar extract an archive.
fn gnu(archive: &Path, dir: &Path) -> Result<(), String> {
    let done = Command::new("tar")
        .args([
            "--extract",
            // Otherwise what comes later in a directory that was left moves its time.
            "--delay-directory-restore",
            "--preserve-permissions",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=user.*",
        ])
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}

/// Whether both other readers are there.
pub fn readers() -> bool {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    there("tar") && there("python3")
}

/// The process that extracts with Python, kept because it starts slowly.
struct Python(Child, BufReader<ChildStdout>);

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Has Python extract an archive; nothing where there is no Python.
fn python(archive: &Path, dir: &Path) -> Option<String> {
    thread_local! {
        static PYTHON: RefCell<Option<Python>> = const { RefCell::new(None) };
    }
    PYTHON.with_borrow_mut(|kept| {
        if kept.is_none() {
            let mut child = Command::new("python3")
                .args(["-c", include_str!("python.py")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .ok()?;
            let out = BufReader::new(child.stdout.take()?);
            *kept = Some(Python(child, out));
        }
        let Python(child, out) = kept.as_mut()?;
        let to: PathBuf = dir.to_path_buf();
        let mut said = String::new();
        writeln!(child.stdin.as_mut()?, "{}\t{}", archive.display(), to.display()).ok()?;
        out.read_line(&mut said).ok()?;
        Some(said.trim_end().to_owned())
    })
}
