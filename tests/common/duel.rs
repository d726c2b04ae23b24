//! The same operations for a subject, the model and a plain directory that starts as a copy of the
//! merged view.
//!
//! After every operation all three have said the same. At every stop (each tenth operation, and the
//! end): the three trees are equal, the lowers are as they were to the last attribute, the work
//! directory has no temporaries, and every object has the inode number it was first seen with, which
//! no other live object has. At the end the overlay is closed and opened again, and the tree is
//! equal, inode numbers included.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::case::{Case, Taste};
use super::layer::Dialect;
use super::model::{Id, Model, Who};
use super::ops::{Op, Outcome, Said, Target, show};
use super::plain::Plain;
use super::sandbox::Sandbox;
use super::tree::{Node, Tree};

/// What competes with the model.
pub trait Subject: Target {
    /// Closes the overlay and opens it again. Nothing is held open.
    fn reopen(&mut self) -> Result<(), String>;

    /// Looks at its own inside.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Where a case's layers are.
#[derive(Debug)]
pub struct Stack {
    /// Top first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Its scratch directory.
    pub work: PathBuf,
    /// Where it can be mounted.
    pub merged: PathBuf,
}

/// Opens a subject.
pub type Make = dyn Fn(&Stack, &Case) -> Result<Box<dyn Subject>, String>;

/// A divergence that is right as it is.
pub struct Known {
    /// In a few words.
    pub name: &'static str,
    /// Why it is justified.
    pub why: &'static str,
    /// Whether it explains what a subject said instead of what was expected. An operation that the
    /// subject refused is then not done to the others either.
    pub said: fn(&Op, &Said, &Said, &Model) -> bool,
    /// Whether it explains what a tree shows (first) instead of what was expected.
    pub shows: fn(&Node, &Node) -> bool,
    /// Whether inode numbers may change when the overlay is opened again.
    pub renumbers: bool,
}

impl Known {
    /// One that explains nothing yet.
    pub const NONE: Known = Known {
        name: "",
        why: "",
        said: |_, _, _, _| false,
        shows: |_, _| false,
        renumbers: false,
    };
}

/// Where and how a case failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How many operations had been done, the failing one included.
    pub at: usize,
    /// What happened.
    pub text: String,
}

/// Runs a case; stops at each `every`th operation and at the end.
pub fn run(case: &Case, make: &Make, known: &[Known], every: usize) -> Result<(), Failure> {
    let mut at = 0;
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut duel = Duel::new(case, make, known)?;
        duel.compare()?;
        for op in &case.ops {
            at += 1;
            duel.step(op)?;
            if at % every == 0 {
                duel.compare()?;
            }
        }
        duel.finish()
    }));
    let done = done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    });
    done.map_err(|text| Failure { at, text })
}

struct Duel<'a> {
    // Before the sandbox, so that what is mounted there goes first.
    subject: Box<dyn Subject>,
    model: Model,
    plain: Plain,
    known: &'a [Known],
    stack: Stack,
    before: Vec<Tree>,
    numbers: BTreeMap<Id, u64>,
    _sandbox: Sandbox,
}

impl<'a> Duel<'a> {
    fn new(case: &Case, make: &Make, known: &'a [Known]) -> Result<Self, String> {
        let sandbox = Sandbox::scratch();
        let space = Who::me().space();
        let said = |e: std::io::Error| format!("write the layers: {e}");
        let mut lowers = Vec::new();
        for (n, (layer, dialect)) in case.layers.iter().zip(&case.dialects).enumerate().skip(1) {
            lowers.push(sandbox.lower(n));
            layer.write(&lowers[n - 1], *dialect, space).map_err(said)?;
        }
        case.layers[0].write(&sandbox.upper(), Dialect::Device, space).map_err(said)?;
        let model = case.model();
        let plain = sandbox.dir("plain");
        model.to_layer().write(&plain, Dialect::Device, space).map_err(said)?;
        let stack = Stack {
            lowers,
            upper: sandbox.upper(),
            work: sandbox.work(),
            merged: sandbox.merged(),
        };
        let before =
            stack.lowers.iter().map(|lower| Tree::read(lower)).collect::<Result<_, _>>()?;
        let subject = make(&stack, case)?;
        let plain = Plain::open(&plain).map_err(said)?;
        Ok(Duel {
            subject,
            model,
            plain,
            known,
            stack,
            before,
            numbers: BTreeMap::new(),
            _sandbox: sandbox,
        })
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        let mut said = self.subject.apply(op);
        if *op == Op::Reopen {
            self.reopen()?;
            said = Ok(Outcome::Done);
        }
        let mut next = self.model.clone();
        let expected = next.apply(op);
        if said != expected {
            let excused =
                self.known.iter().any(|known| (known.said)(op, &said, &expected, &self.model));
            if !excused {
                return Err(format!(
                    "{op}\n    subject   {}\n    expected  {}",
                    show(&said),
                    show(&expected)
                ));
            }
            if said.is_err() {
                return Ok(());
            }
        }
        let real = self.plain.apply(op);
        if real != expected {
            return Err(format!(
                "THE KIT: {op}\n    model  {}\n    plain  {}",
                show(&expected),
                show(&real)
            ));
        }
        self.model = next;
        Ok(())
    }

    /// Turns what a known divergence explains into what was expected.
    fn excuse(&self, tree: &mut Tree, expected: &Tree) {
        for (path, node) in &mut tree.nodes {
            if let Some(want) = expected.nodes.get(path).filter(|want| *want != node) {
                if self.known.iter().any(|known| (known.shows)(node, want)) {
                    *node = want.clone();
                }
            }
        }
    }

    fn compare(&mut self) -> Result<(), String> {
        let expected = self.model.tree()?;
        let real = self.plain.tree()?.diff(&expected, ("plain", "model"));
        if !real.is_empty() {
            return Err(format!("THE KIT: trees differ\n{real}"));
        }
        let mut shown = self.subject.tree().map_err(|text| format!("tree: {text}"))?;
        self.excuse(&mut shown, &expected);
        let diff = shown.diff(&expected, ("subject", "expected"));
        if !diff.is_empty() {
            return Err(format!("trees differ\n{diff}"));
        }
        self.check_numbers(&shown)?;
        for (lower, before) in self.stack.lowers.iter().zip(&self.before) {
            let diff = Tree::read(lower)?.diff(before, ("is", "was"));
            if !diff.is_empty() {
                return Err(format!("{} changed\n{diff}", lower.display()));
            }
        }
        let left = self.temporaries();
        if !left.is_empty() {
            return Err(format!("left in the work directory: {left:?}"));
        }
        self.subject.check().map_err(|text| format!("invariant: {text}"))
    }

    fn check_numbers(&mut self, shown: &Tree) -> Result<(), String> {
        let paths = self.model.paths();
        let mut owners: BTreeMap<u64, Id> = BTreeMap::new();
        let mut live = BTreeMap::new();
        for (path, id) in &paths {
            let ino = shown.inos[path];
            let first = *self.numbers.get(id).unwrap_or(&ino);
            if first != ino {
                return Err(format!("inode number of '{path}' is {ino}, was {first}"));
            }
            if *owners.entry(ino).or_insert(*id) != *id {
                return Err(format!("inode number {ino} of '{path}' is another object's too"));
            }
            live.insert(*id, ino);
        }
        // What is open without a name may get one again.
        for id in (0..3).filter_map(|slot| self.model.id_held(slot)) {
            if let Some(ino) = self.numbers.get(&id) {
                live.insert(id, *ino);
            }
        }
        self.numbers = live;
        Ok(())
    }

    fn temporaries(&self) -> Vec<String> {
        let entries =
            std::fs::read_dir(self.stack.work.join("work")).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "incompat")
            .collect()
    }

    fn reopen(&mut self) -> Result<(), String> {
        self.subject.close_all();
        self.subject.reopen().map_err(|text| format!("open again: {text}"))?;
        if self.known.iter().any(|known| known.renumbers) {
            self.numbers.clear();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        self.compare()?;
        self.subject.close_all();
        self.model.close_all();
        self.plain.close_all();
        self.compare().map_err(|text| format!("when all is closed: {text}"))?;
        self.reopen()?;
        self.compare().map_err(|text| format!("opened again: {text}"))
    }
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// Runs the cases of many seeds, 60 (times the taste's share) by default. `PLYFS_SEED` runs one,
/// `PLYFS_SEEDS` says how many,
/// `PLYFS_FIRST` where they start. The first that fails is shrunk and printed. With `PLYFS_ALL` set
/// every seed is run and the failures are counted.
pub fn campaign(title: &str, taste: Taste, make: &Make, known: &[Known]) {
    let first = env("PLYFS_SEED").or_else(|| env("PLYFS_FIRST")).unwrap_or(1);
    let count = if env("PLYFS_SEED").is_some() {
        1
    } else {
        env("PLYFS_SEEDS").unwrap_or(60) * taste.share
    };
    let mut failed = Vec::new();
    for seed in first..first + count {
        let case = Case::random(seed, taste);
        let Err(failure) = run(&case, make, known, 10) else { continue };
        eprintln!("{title}: seed {seed}: after {} operations: {}", failure.at, failure.text);
        failed.push(seed);
        if env("PLYFS_ALL").is_none() {
            let (case, failure) = super::shrink::shrink(case, failure, &|case| {
                run(case, make, known, usize::MAX).err()
            });
            panic!(
                "{title}: PLYFS_SEED={seed}\n{case}\nafter {} operations: {}",
                failure.at, failure.text
            );
        }
    }
    assert!(failed.is_empty(), "{title}: {} of {count} seeds failed: {failed:?}", failed.len());
    eprintln!("{title}: {count} seeds from {first} of {} operations: no divergence", taste.ops);
}
