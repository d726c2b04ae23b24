//! Many threads on few names of one overlay core: what they leave is whole, and what they were told
//! can have happened. `PLYFS_SEED=n` runs one seed, `PLYFS_SEEDS=n` that many.

use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::common::case::{Case, Taste, random_ops};
use crate::common::core::Core;
use crate::common::layer::Dialect;
use crate::common::model::{Model, Who};
use crate::common::ops::{EXCHANGE, Fill, NOREPLACE, Op, Outcome, Said, Target, show};
use crate::common::rng::Rng;
use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::common::tree::{Meta, Tree};
use crate::{needs, this_test};

/// A stack on disk.
struct Site {
    sandbox: Sandbox,
    lowers: Vec<std::path::PathBuf>,
    before: Vec<Tree>,
}

impl Site {
    fn new(case: &Case) -> Site {
        let sandbox = Sandbox::new();
        let space = Who::me().space();
        let mut lowers = Vec::new();
        for (n, (layer, dialect)) in case.layers.iter().zip(&case.dialects).enumerate().skip(1) {
            lowers.push(sandbox.lower(n));
            layer.write(&lowers[n - 1], *dialect, space).unwrap();
        }
        case.layers[0].write(&sandbox.upper(), Dialect::Device, space).unwrap();
        let before = lowers.iter().map(|lower| Tree::read(lower).unwrap()).collect();
        Site { sandbox, lowers, before }
    }

    fn open(&self) -> Core {
        Core::open(&self.lowers, self.sandbox.upper(), self.sandbox.work()).unwrap()
    }

    /// Everything that holds when nobody does anything: invariants, a tree that reads the same twice
    /// and after opening again, lowers as they were, no temporaries. Returns the tree.
    fn settle(&self, core: Core, story: &dyn Fn() -> String) -> Tree {
        let tree = core.tree().unwrap_or_else(|e| panic!("tree: {e}\n{}", story()));
        if let Err(text) = core.overlay().check_invariants() {
            panic!("invariant: {text}\n{}", story());
        }
        assert!(Arc::strong_count(core.overlay()) == 1, "a client is left\n{}", story());
        drop(core);
        let again = self.open();
        let after =
            again.tree().unwrap_or_else(|e| panic!("tree when opened again: {e}\n{}", story()));
        let diff = after.diff(&tree, ("opened again", "before"));
        assert!(diff.is_empty(), "the tree differs when opened again\n{diff}\n{}", story());
        assert_eq!(after.inos, tree.inos, "inode numbers differ when opened again\n{}", story());
        drop(again);
        for (lower, before) in self.lowers.iter().zip(&self.before) {
            let diff = Tree::read(lower).unwrap().diff(before, ("is", "was"));
            assert!(diff.is_empty(), "{} changed\n{diff}\n{}", lower.display(), story());
        }
        let left: Vec<_> = std::fs::read_dir(self.sandbox.work().join("work"))
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(left.is_empty(), "left in the work directory: {left:?}\n{}", story());
        tree
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let env = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match env("PLYFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = env("PLYFS_FIRST").unwrap_or(1);
            first..first + env("PLYFS_SEEDS").unwrap_or(usual)
        }
    }
}

/// One operation as it happened.
struct Event {
    thread: usize,
    op: Op,
    start: Instant,
    end: Instant,
    said: Said,
}

/// Lets each client do its operations, all at once. A thread that does not come back fails the test.
fn race(clients: Vec<(Core, Vec<Op>)>, what: &str) -> Vec<Event> {
    let barrier = Arc::new(Barrier::new(clients.len()));
    let (send, receive) = channel();
    let count = clients.len();
    for (thread, (mut core, ops)) in clients.into_iter().enumerate() {
        let (barrier, send) = (barrier.clone(), send.clone());
        std::thread::spawn(move || {
            barrier.wait();
            let mut events = Vec::new();
            for op in ops {
                let start = Instant::now();
                let said = core.apply(&op);
                events.push(Event { thread, op, start, end: Instant::now(), said });
            }
            core.close_all();
            drop(core);
            // The receiver is gone only when the test has failed already.
            let _ = send.send(events);
        });
    }
    drop(send);
    let end = Instant::now() + Duration::from_secs(60);
    let mut events = Vec::new();
    for _ in 0..count {
        let left = end.saturating_duration_since(Instant::now());
        let done = receive.recv_timeout(left);
        events.extend(done.unwrap_or_else(|e| {
            panic!("{what}: a thread did not finish ({e}): panic or deadlock")
        }));
    }
    events
}

fn stress(test: &str) {
    let range = seeds(20);
    for seed in range.clone() {
        let case = Case::random(seed, Taste { ops: 0, ..Taste::default() });
        let site = Site::new(&case);
        let core = site.open();
        let clients = (0..4).map(|thread| {
            let mut rng = Rng::new(seed * 16 + thread);
            let ops = random_ops(
                &mut rng,
                &["a", "b"],
                case.model(),
                Taste { ops: 200, reopen: false, ..Taste::default() },
            );
            (Core::new(core.overlay().clone()), ops)
        });
        let story = || format!("PLYFS_SEED={seed}\n{case}");
        race(clients.collect(), &format!("{test}: PLYFS_SEED={seed}"));
        site.settle(core, &story);
    }
    eprintln!("{test}: {} seeds from {}: whole", range.end - range.start, range.start);
}

/// Whatever four threads did, the tree is whole, and the same when the overlay is opened again.
#[test]
fn racing_operations_leave_a_whole_tree() {
    // Without a mount nobody grants access to a directory that was made unreadable.
    needs!(Root);
    stress(this_test!());
}

/// The same for an ordinary user.
#[test]
fn racing_operations_leave_a_whole_tree_rootless() {
    needs!(UserNs);
    if rootless::run(this_test!()) {
        return;
    }
    stress(this_test!());
}

/// An operation that is one call of the core, so that it happens at one moment.
fn momentary(rng: &mut Rng) -> Op {
    let mut name = || rng.pick(&["a", "b", "c"]).to_owned();
    let (path, to) = (name(), name());
    let slot = rng.below(2);
    let (at, fill) = (rng.pick(&[0, 60, 120]), Fill { seed: rng.below(250) as u8, len: 100 });
    match rng.weighted(&[10, 10, 5, 14, 8, 25, 10, 14, 10, 8]) {
        0 => Op::Mkdir { path, mode: 0o755 },
        1 => Op::Mknod { path, mode: libc::S_IFREG | 0o644, rdev: (0, 0) },
        2 => Op::Symlink { path, target: "x".to_owned() },
        3 => Op::Unlink { path },
        4 => Op::Rmdir { path },
        5 => Op::Rename { from: path, to, flags: rng.pick(&[0, 0, NOREPLACE, EXCHANGE]) },
        6 => Op::Stat { path },
        7 => Op::HeldWrite { slot, at, fill },
        8 => Op::HeldRead { slot, at, len: 200 },
        _ => Op::HeldStat { slot },
    }
}

/// Whether this was said at that moment. Looking a name up and looking at what it stands for are two
/// moments on every Linux filesystem, so a stat may show that a name of the object went in between. Nor does
/// a stat or a read wait for a write: ext4 sets the time first, then the size, the set-id bits fall before
/// the data is there, and a read may have half of it. A directory that goes is emptied of its whiteouts,
/// which moves the time that a late stat of it shows. What such a change overlaps (`torn`) is believed
/// about what the change leaves alone.
fn same(said: &Said, expected: &Said, torn: bool) -> bool {
    match (said, expected) {
        (Ok(Outcome::Stat(said)), Ok(Outcome::Stat(expected))) if torn => {
            let lasting = |meta: &Meta| (meta.kind, meta.mode & 0o777, meta.uid, meta.gid);
            lasting(said) == lasting(expected)
        }
        (Ok(Outcome::Bytes(said)), Ok(Outcome::Bytes(expected))) if torn => {
            said.len() == expected.len()
        }
        (Ok(Outcome::Stat(said)), Ok(Outcome::Stat(expected))) if said.nlink == 0 => {
            *said == Meta { nlink: 0, ..expected.clone() }
        }
        _ => said == expected,
    }
}

/// Whether the events can have happened one after another, each between its start and its end, with
/// the model saying what was said and ending as the tree did.
fn explained(model: &Model, events: &[Event], done: u32, tree: &Tree) -> bool {
    if done.count_ones() as usize == events.len() {
        return model.tree().unwrap() == *tree;
    }
    let waits = |i: usize| done & (1 << i) == 0;
    events.iter().enumerate().filter(|(i, _)| waits(*i)).any(|(i, event)| {
        // Nothing that ended before this one began may come after it.
        if events.iter().enumerate().any(|(j, other)| j != i && waits(j) && other.end < event.start)
        {
            return false;
        }
        let tears = |op: &Op| match &event.said {
            Ok(Outcome::Stat(meta)) if meta.kind == 'd' => {
                matches!(op, Op::Rmdir { .. } | Op::Rename { .. })
            }
            Ok(Outcome::Stat(_)) => {
                matches!(op, Op::HeldWrite { .. } | Op::Unlink { .. } | Op::Rename { .. })
            }
            Ok(Outcome::Bytes(_)) => matches!(op, Op::HeldWrite { .. }),
            _ => false,
        };
        let torn = events
            .iter()
            .any(|other| tears(&other.op) && other.start <= event.end && event.start <= other.end);
        let mut next = model.clone();
        same(&event.said, &next.apply(&event.op), torn)
            && explained(&next, events, done | 1 << i, tree)
    })
}

/// Three threads, four operations each: there is an order in which the model says what each was told.
#[test]
fn racing_operations_have_an_order() {
    needs!(Root);
    let range = seeds(150);
    for seed in range.clone() {
        let case = Case::random(seed, Taste { ops: 0, ..Taste::default() });
        let site = Site::new(&case);
        let core = site.open();
        let mut model = case.model();
        let mut rng = Rng::new(seed);
        let mut clients: Vec<_> =
            (0..3).map(|_| (Core::new(core.overlay().clone()), Vec::new())).collect();
        // Everybody has the same files open before the race.
        for (slot, path) in ["a", "b"].iter().enumerate() {
            let hold = Op::Hold { slot, path: (*path).to_owned(), write: true };
            let expected = model.apply(&hold);
            clients.iter_mut().for_each(|(core, _)| assert_eq!(core.apply(&hold), expected));
        }
        for (_, ops) in &mut clients {
            ops.extend((0..4).map(|_| momentary(&mut rng)));
        }
        let mut events = race(clients, &format!("PLYFS_SEED={seed}"));
        events.sort_by_key(|event| event.start);
        let story = || {
            let zero = events[0].start;
            let line = |e: &Event| {
                let (start, end) = ((e.start - zero).as_micros(), (e.end - zero).as_micros());
                format!(
                    "    {start:>6}..{end:<6} us  thread {}  {}: {}\n",
                    e.thread,
                    e.op,
                    show(&e.said)
                )
            };
            format!("PLYFS_SEED={seed}\n{case}{}", events.iter().map(line).collect::<String>())
        };
        let tree = site.settle(core, &story);
        assert!(
            explained(&model, &events, 0, &tree),
            "no order explains this\n{}\nthe end\n{tree}",
            story()
        );
    }
    eprintln!(
        "{}: {} seeds from {}: explained",
        this_test!(),
        range.end - range.start,
        range.start
    );
}
