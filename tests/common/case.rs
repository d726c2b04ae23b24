//! A case: a stack of layers and a list of operations, both decided by a seed.

use std::fmt;

use super::layer::{Dialect, Generator, Layer, What, random_past};
use super::model::{Model, Who, merge};
use super::ops::{EXCHANGE, Fill, NOREPLACE, Op, Target, join};
use super::rng::Rng;

/// What random cases may contain.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// Operations a case has.
    pub ops: usize,
    /// How many seeds are run for each one asked for.
    pub share: u64,
    /// Closing and opening the overlay again in between.
    pub reopen: bool,
    /// Deletions and opaque marks in every dialect, not the kernel's alone.
    pub dialects: bool,
    /// Whiteouts where there is nothing to hide.
    pub strays: bool,
    /// An upper that is not empty at first.
    pub upper: bool,
    /// O_TMPFILE.
    pub tmpfile: bool,
    /// Attributes named as the overlay's own.
    pub escapes: bool,
}

impl Taste {
    /// Many fresh stacks rather than many operations: soon after the first ones little of the lowers
    /// is left to be seen.
    pub fn fresh() -> Taste {
        Taste { ops: 12, share: 10, ..Taste::default() }
    }
}

impl Default for Taste {
    fn default() -> Self {
        Taste {
            ops: 400,
            share: 1,
            reopen: true,
            dialects: true,
            strays: true,
            upper: true,
            tmpfile: true,
            escapes: true,
        }
    }
}

/// A stack and what is done to it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What decided it.
    pub seed: u64,
    /// Top first; the first is the upper.
    pub layers: Vec<Layer>,
    /// How each layer is written.
    pub dialects: Vec<Dialect>,
    /// In order.
    pub ops: Vec<Op>,
}

const MODES: [u32; 5] = [0o644, 0o600, 0o755, 0o666, 0o777];
const FILE_MODES: [u32; 7] = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o2644];
const DIR_MODES: [u32; 5] = [0o755, 0o700, 0o777, 0o1777, 0o2775];
const SIZES: [usize; 7] = [1, 3, 100, 4095, 4096, 5000, 12_000];
const PLACES: [u64; 8] = [0, 0, 1, 50, 4096, 5000, 20_000, 70_000];

impl Case {
    /// The case of a seed.
    pub fn random(seed: u64, taste: Taste) -> Case {
        let who = Who::me();
        let mut rng = Rng::new(seed);
        let names: &[&str] = if rng.chance(40) { &["a", "b"] } else { &["a", "b", "c"] };
        let mut stack = vec![Layer::empty(who)];
        for _ in 0..1 + rng.below(4) {
            stack.push(Generator { rng: &mut rng, names, who }.layer());
        }
        if taste.upper && rng.chance(25) {
            stack[0] = Generator { rng: &mut rng, names, who }.layer();
        }
        part_hidden_links(&mut stack, who);
        if !taste.strays {
            let stray = merge(&stack, who).stray;
            stray.iter().for_each(|(layer, path)| stack[*layer].remove(path));
        }
        let every: &[Dialect] = if taste.dialects {
            &[Dialect::Device, Dialect::Dot, Dialect::Xattr]
        } else {
            &[Dialect::Device]
        };
        let mut dialects: Vec<Dialect> = stack.iter().map(|_| rng.pick(every)).collect();
        dialects[0] = Dialect::Device;
        let ops = random_ops(&mut rng, names, Model::merge(&stack, who), taste);
        Case { seed, layers: stack, dialects, ops }
    }

    /// The merged view by the definition.
    pub fn model(&self) -> Model {
        Model::merge(&self.layers, Who::me())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for (index, (layer, dialect)) in self.layers.iter().zip(&self.dialects).enumerate() {
            let title = if index == 0 { "upper".to_owned() } else { format!("lower{index}") };
            write!(f, "{title} ({dialect:?})\n{layer}")?;
        }
        writeln!(f, "operations")?;
        for (index, op) in self.ops.iter().enumerate() {
            writeln!(f, "    {:>3} {op}", index + 1)?;
        }
        Ok(())
    }
}

/// A link count says how many names a file has. Of a file whose names are partly hidden no overlay
/// can know it without reading the whole stack, so there are none: the names become files.
pub fn part_hidden_links(layers: &mut [Layer], who: Who) {
    let shown = merge(layers, who).shown;
    for (index, layer) in layers.iter_mut().enumerate() {
        let firsts: Vec<String> = layer.items.keys().cloned().collect();
        for first in firsts {
            let others: Vec<String> = layer
                .items
                .iter()
                .filter(|(_, item)| item.what == What::Same(first.clone()))
                .map(|(path, _)| path.clone())
                .collect();
            let group: Vec<&String> = others.iter().chain([&first]).collect();
            let visible =
                group.iter().filter(|path| shown.contains(&(index, (**path).clone()))).count();
            if visible != 0 && visible != group.len() {
                for path in others {
                    layer.items.insert(path, layer.items[&first].clone());
                }
            }
        }
    }
}

/// Operations that mostly make sense on the tree as it is when their turn comes.
pub fn random_ops(rng: &mut Rng, names: &[&str], model: Model, taste: Taste) -> Vec<Op> {
    let who = Who::me();
    let mut pick = Pick { rng, names, model, who, taste, held: Vec::new() };
    (0..taste.ops)
        .map(|_| {
            let op = pick.op();
            let said = pick.model.apply(&op);
            match &op {
                Op::Hold { slot, .. } | Op::HoldTmp { slot, .. } if said.is_ok() => {
                    pick.held.push(*slot)
                }
                Op::Close { slot } => pick.held.retain(|s| s != slot),
                Op::Reopen => pick.held.clear(),
                _ => {}
            }
            op
        })
        .collect()
}

struct Pick<'a> {
    rng: &'a mut Rng,
    names: &'a [&'a str],
    /// The tree as it is.
    model: Model,
    who: Who,
    taste: Taste,
    /// Slots that have something open.
    held: Vec<usize>,
}

impl Pick<'_> {
    /// Any path but the root, up to three names deep; most often one whose directory exists.
    fn path(&mut self) -> String {
        if self.rng.chance(12) {
            let depth = 1 + self.rng.below(3);
            return (0..depth).map(|_| self.rng.pick(self.names)).collect::<Vec<_>>().join("/");
        }
        let shallow = |path: &String| path.split('/').filter(|p| !p.is_empty()).count() < 3;
        let dirs: Vec<String> = self.known("d").into_iter().filter(shallow).collect();
        join(&self.rng.pick(&dirs), self.rng.pick(self.names))
    }

    /// Paths of objects of the given kinds, the root among the directories.
    fn known(&self, kinds: &str) -> Vec<String> {
        self.model
            .paths()
            .into_iter()
            .map(|(path, _)| path)
            .filter(|p| self.model.kind_at(p).is_some_and(|k| kinds.contains(k)))
            .collect()
    }

    /// Most often an existing object of the given kinds, otherwise any path.
    fn of(&mut self, kinds: &str) -> String {
        let known: Vec<String> =
            self.known(kinds).into_iter().filter(|path| !path.is_empty()).collect();
        if known.is_empty() || self.rng.chance(12) { self.path() } else { self.rng.pick(&known) }
    }

    fn file(&mut self) -> String {
        self.of("-")
    }

    fn any(&mut self) -> String {
        if self.rng.chance(4) { String::new() } else { self.of("-dlpc") }
    }

    fn fill(&mut self) -> Fill {
        Fill { seed: self.rng.below(250) as u8, len: self.rng.pick(&SIZES) }
    }

    fn slot(&mut self) -> usize {
        if self.held.is_empty() || self.rng.chance(10) {
            self.rng.below(3)
        } else {
            self.rng.pick(&self.held)
        }
    }

    fn place(&mut self) -> u64 {
        self.rng.pick(&PLACES)
    }

    fn xattr(&mut self) -> String {
        let mut names = vec!["user.a", "user.a", "user.b"];
        if self.who.privileged {
            names.push("trusted.a");
        }
        if self.taste.escapes {
            names.push("user.overlay.opaque");
            names.extend(self.who.privileged.then_some("trusted.overlay.opaque"));
        }
        self.rng.pick(&names).to_owned()
    }

    fn op(&mut self) -> Op {
        if self.taste.reopen && self.rng.below(120) == 0 {
            return Op::Reopen;
        }
        match self.rng.weighted(&[48, 26, 14, 12]) {
            0 => self.op_on_names(),
            1 => self.op_on_contents(),
            2 => self.op_on_attributes(),
            _ => self.op_on_held(),
        }
    }

    fn op_on_names(&mut self) -> Op {
        match self.rng.weighted(&[14, 13, 3, 5, 8, 26, 15, 10, 6, 3]) {
            0 => Op::Create {
                path: self.path(),
                mode: self.rng.pick(&MODES),
                fill: self.fill_or_none(),
            },
            1 => Op::Mkdir { path: self.path(), mode: self.rng.pick(&MODES) | 0o700 },
            2 => self.mknod(),
            3 => Op::Symlink {
                path: self.path(),
                target: self.rng.pick(&["a", "a/b", "../b", "/etc/passwd"]).to_owned(),
            },
            4 => Op::Link { from: self.of("-lp"), to: self.path() },
            5 => {
                let from = if self.rng.chance(50) { self.of("d") } else { self.of("-dlpc") };
                let to = if self.rng.chance(40) { self.of("-dlpc") } else { self.path() };
                Op::Rename { from, to, flags: self.rng.pick(&[0, 0, 0, NOREPLACE, EXCHANGE]) }
            }
            6 => Op::Unlink { path: self.of("-lpc") },
            7 => Op::Rmdir { path: self.of("d") },
            8 => {
                Op::ReadDir { path: if self.rng.chance(20) { String::new() } else { self.of("d") } }
            }
            _ => Op::ReadLink { path: self.of("l") },
        }
    }

    fn fill_or_none(&mut self) -> Fill {
        let fill = self.fill();
        if self.rng.chance(30) { Fill { len: 0, ..fill } } else { fill }
    }

    fn mknod(&mut self) -> Op {
        let (kind, rdev) = match self.rng.below(3) {
            0 if self.who.privileged => {
                (libc::S_IFCHR, self.rng.pick(&[(1, 3), (1, 9), (250, 70_000)]))
            }
            1 => (libc::S_IFREG, (0, 0)),
            _ => (libc::S_IFIFO, (0, 0)),
        };
        Op::Mknod { path: self.path(), mode: kind | self.rng.pick(&MODES), rdev }
    }

    fn op_on_contents(&mut self) -> Op {
        match self.rng.weighted(&[8, 25, 15, 10, 12, 20]) {
            0 => Op::Overwrite { path: self.file(), fill: self.fill() },
            1 => Op::Write { path: self.file(), at: self.place(), fill: self.fill() },
            2 => Op::Truncate { path: self.file(), size: self.place() },
            3 => {
                let mode = self.rng.pick(&[0, 1, 3]);
                Op::Fallocate {
                    path: self.file(),
                    mode,
                    at: self.place(),
                    len: self.rng.pick(&SIZES) as u64,
                }
            }
            4 => {
                let (from, to) = (self.file(), self.file());
                let (from_at, to_at) = (self.place(), self.place());
                Op::CopyRange { from, from_at, to, to_at, len: self.rng.pick(&SIZES) as u64 }
            }
            _ => Op::Read { path: self.file(), at: self.place(), len: self.rng.pick(&SIZES) },
        }
    }

    fn op_on_attributes(&mut self) -> Op {
        let path = self.any();
        match self.rng.weighted(&[12, 8, 12, 12, 8, 8, 20]) {
            0 => {
                let modes: &[u32] =
                    if self.model.kind_at(&path) == Some('d') { &DIR_MODES } else { &FILE_MODES };
                Op::Chmod { mode: self.rng.pick(modes), path }
            }
            1 if self.who.root() => {
                let (uid, gid) =
                    (self.rng.pick(&[0, 1000, 54_321]), self.rng.pick(&[0, 1000, 54_321]));
                let (uid, gid) =
                    self.rng.pick(&[(Some(uid), None), (None, Some(gid)), (Some(uid), Some(gid))]);
                Op::Chown { path, uid, gid }
            }
            2 => Op::Utimes { path, mtime: random_past(self.rng) },
            3 => {
                let value = self.rng.pick(&["", "x", "y", "a value of some length"]).to_owned();
                Op::SetXattr {
                    path,
                    name: self.xattr(),
                    value,
                    flags: self.rng.pick(&[0, 0, 1, 2]),
                }
            }
            4 => Op::RemoveXattr { path, name: self.xattr() },
            5 => Op::GetXattr { path, name: self.xattr() },
            _ => Op::Stat { path },
        }
    }

    fn op_on_held(&mut self) -> Op {
        let slot = self.slot();
        match self.rng.weighted(&[25, 4, 20, 15, 15, 5, 4, 6, 4]) {
            0 => {
                Op::Hold { slot: self.rng.below(3), path: self.file(), write: self.rng.chance(60) }
            }
            1 if self.taste.tmpfile => {
                let path = if self.rng.chance(30) { String::new() } else { self.of("d") };
                Op::HoldTmp { slot, path, mode: self.rng.pick(&MODES) }
            }
            2 => Op::HeldWrite { slot, at: self.place(), fill: self.fill() },
            3 => Op::HeldRead { slot, at: self.place(), len: self.rng.pick(&SIZES) },
            5 => Op::HeldTruncate { slot, size: self.place() },
            6 => Op::HeldChmod { slot, mode: self.rng.pick(&FILE_MODES) },
            7 => Op::HeldLink { slot, to: self.path() },
            8 => Op::Close { slot },
            _ => Op::HeldStat { slot },
        }
    }
}
