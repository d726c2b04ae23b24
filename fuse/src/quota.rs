//! Limits of bytes and inodes on what an upper directory holds, kept by us.
//!
//! The `Meter` keeps the books and touches no file. Whoever makes the upper directory grow sets room aside first, an upper
//! bound, and books what really came of it; with no room left that is ENOSPC, before anything was done. Objects are booked
//! with the blocks that stat tells of them, one with several names once. An object that lost its last name while the kernel
//! knows it is booked until it is forgotten: somebody may have it open.
//! Of a directory two blocks are free, one for names and one for marks: not every filesystem has them. Many names, or long
//! attributes, take more, which is booked once they have; where there is more than there may be, no further name comes.
//! Removing is never refused: what it leaves behind is booked also where there is no room.
//!
//! What is not booked (blocks of attributes that we set ourselves, blocks that a filesystem takes or gives back later) is found when there
//! seems to be no room, and when much has gone: everything is counted again then, at most once a second, while others go on.
//!
//! Without limits there is no meter, and nothing here costs anything.

mod ahead;
mod blocks;
mod count;
mod names;
mod objects;

use std::io;
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use blocks::{Span, booked, data_in};
use objects::Objects;

use crate::options::Options;
use crate::sys::{self, FsStat, Stat};

/// Bytes of a directory that are free.
const DIRECTORY: u64 = 8192;
/// The shortest time between two counts.
const PAUSE: Duration = Duration::from_secs(1);
/// A count that takes long is not made again before this many times as long has passed.
const REST: u32 = 10;
/// Everything is counted again when this part of the limit has gone since the last time.
const TURNOVER: u64 = 16;
/// More than one request takes, unless it copies so much that it is not answered at once anyway.
const TIGHT: Used = Used { bytes: 4 << 20, inodes: 256 };
/// How often a count is made when others were at work meanwhile.
const TRIES: u32 = 3;
/// How long the kernel may take to say that it has forgotten what was just deleted.
pub(crate) const FORGETS_WITHIN: Duration = Duration::from_millis(300);

/// What is, or may be, in an upper directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes of the blocks of all objects, without the two that are free for every directory.
    pub bytes: u64,
    /// Inodes, without the upper directory itself.
    pub inodes: u64,
}

impl Used {
    /// What one object is booked with.
    pub(crate) fn of(stat: &Stat) -> Used {
        let bytes = stat.blocks.saturating_mul(512);
        let free = if stat.is_dir() { DIRECTORY } else { 0 };
        Used { bytes: bytes.saturating_sub(free), inodes: 1 }
    }

    /// An inode that has nothing yet.
    pub(crate) const INODE: Used = Used { bytes: 0, inodes: 1 };

    /// Only bytes.
    pub(crate) fn bytes(bytes: u64) -> Used {
        Used { bytes, inodes: 0 }
    }

    fn plus(self, other: Used) -> Used {
        Used {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }

    fn minus(self, other: Used) -> Used {
        Used {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }

    fn most(self, other: Used) -> Used {
        Used { bytes: self.bytes.max(other.bytes), inodes: self.inodes.max(other.inodes) }
    }

    fn least(self, other: Used) -> Used {
        Used { bytes: self.bytes.min(other.bytes), inodes: self.inodes.min(other.inodes) }
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, other: Used) {
        *self = self.plus(other);
    }
}

/// What came and what went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) came: Used,
    pub(crate) went: Used,
}

impl Change {
    /// From one stat of an object to a later one.
    pub(crate) fn between(before: &Stat, after: &Stat) -> Change {
        let (before, after) = (Used::of(before), Used::of(after));
        Change { came: after.minus(before), went: before.minus(after) }
    }
}

impl AddAssign for Change {
    fn add_assign(&mut self, other: Change) {
        self.came += other.came;
        self.went += other.went;
    }
}

/// The books of a mount with limits.
#[derive(Debug)]
pub(crate) struct Meter {
    /// The most there may be; `u64::MAX` where there is no limit.
    limits: Used,
    books: Mutex<Books>,
    /// Held over a count, which others wait for: there may be room after it.
    counting: Mutex<()>,
    /// Objects whose names change, and those that are booked without one.
    objects: Mutex<Objects>,
    elsewhere: Elsewhere,
}

/// Who makes counts without need.
#[derive(Default)]
struct Elsewhere(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Elsewhere")
    }
}

#[derive(Debug, Default)]
struct Books {
    used: Used,
    /// Set aside by those who are at work.
    reserved: Used,
    /// How many are at work.
    busy: u32,
    /// Rises with every change that is booked.
    turn: u64,
    /// Rises when objects may have got other names, by which a count under way misses them.
    moves: u64,
    /// All that ever came, and all that ever went.
    came: Used,
    went: Used,
    /// Bytes that went since the last count: what was not booked when it came goes with them.
    turned: u64,
    /// When everything may be counted again.
    next_count: Option<Instant>,
    /// When an object that the kernel knows lost its last name.
    left: Option<Instant>,
    /// The filesystem takes blocks in advance: there were some to give back.
    ahead: bool,
}

/// Room set aside for one operation. What came of the operation is booked when this goes.
#[derive(Debug)]
pub(crate) struct Reserved<'a> {
    meter: &'a Meter,
    room: Used,
    change: Change,
    moves: bool,
}

impl Reserved<'_> {
    /// Books what came and what went in the place of the room.
    pub(crate) fn settle(mut self, change: Change) {
        self.change = change;
    }

    /// An inode has left the table: an object without a name goes with it.
    pub(crate) fn forget(self, pin: impl AsFd) {
        let Ok(stat) = sys::fstat(pin) else { return };
        if self.meter.objects.lock().forget(names::id(&stat)) {
            self.settle(Change { came: Used::default(), went: Used::of(&stat) });
        }
    }

    /// Books an object that came.
    pub(crate) fn came(self, what: Used) {
        self.settle(Change { came: what, went: Used::default() });
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut books = self.meter.books.lock();
        books.reserved = books.reserved.minus(self.room);
        books.busy -= 1;
        books.moves += u64::from(self.moves);
        if self.change != Change::default() {
            books.turn += 1;
            books.came += self.change.came;
            books.went += self.change.went;
            books.turned = books.turned.saturating_add(self.change.went.bytes);
            books.used = books.used.plus(self.change.came).minus(self.change.went);
        }
    }
}

impl Meter {
    /// The meter of a mount; none where nothing is limited.
    pub(crate) fn new(options: &Options) -> Option<Meter> {
        if options.size.is_none() && options.nr_inodes.is_none() {
            return None;
        }
        let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        let limits = Used { bytes: most(options.size), inodes: most(options.nr_inodes) };
        let (books, counting, objects) = (Mutex::default(), Mutex::default(), Mutex::default());
        Some(Meter { limits, books, counting, objects, elsewhere: Elsewhere::default() })
    }

    /// Takes over what was counted while nobody was at work.
    pub(crate) fn start(&self, used: Used) {
        self.books.lock().used = used;
    }

    /// What is booked.
    pub(crate) fn used(&self) -> Used {
        self.books.lock().used
    }

    /// Room for something that may grow by `room` at most, if there is.
    pub(crate) fn reserve(&self, room: Used) -> Option<Reserved<'_>> {
        let mut books = self.books.lock();
        let free = self.limits.minus(books.used.plus(books.reserved));
        // What takes nothing is welcome also where there is too much already.
        if room.bytes > free.bytes || room.inodes > free.inodes {
            return None;
        }
        Some(self.enter(&mut books, room))
    }

    /// For what is never refused.
    pub(crate) fn begin(&self) -> Reserved<'_> {
        self.enter(&mut self.books.lock(), Used::default())
    }

    fn enter(&self, books: &mut Books, room: Used) -> Reserved<'_> {
        books.reserved += room;
        books.busy += 1;
        Reserved { meter: self, room, change: Change::default(), moves: false }
    }

    /// What may still come.
    pub(crate) fn free(&self) -> Used {
        let books = self.books.lock();
        self.limits.minus(books.used.plus(books.reserved))
    }

    /// Whether there is so little room that what needs some may have to wait.
    pub(crate) fn is_tight(&self) -> bool {
        let free = self.free();
        free.bytes < TIGHT.bytes || free.inodes < TIGHT.inodes
    }

    /// Whether there is more than there may be.
    pub(crate) fn is_over(&self) -> bool {
        self.used().bytes > self.limits.bytes
    }

    /// An object that the kernel knows has lost its last name.
    pub(crate) fn leaves(&self) {
        self.books.lock().left = Some(Instant::now());
    }

    /// Whether the kernel may just be saying that it has forgotten something.
    pub(crate) fn is_leaving(&self) -> bool {
        let left = self.books.lock().left;
        left.is_some_and(|left| left.elapsed() < FORGETS_WITHIN) && self.objects.lock().keep_any()
    }

    /// Whether `give_back`, which gives back blocks that were taken in advance, is worth a try; it says whether there were any.
    pub(crate) fn may_give_back(&self, give_back: impl FnOnce() -> bool) {
        let worth = {
            let books = self.books.lock();
            books.ahead || books.next_count.is_none_or(|next| Instant::now() >= next)
        };
        if worth {
            let ahead = give_back();
            self.books.lock().ahead = ahead;
        }
    }

    /// Puts the books right by `count`, which looks at everything, unless that was done not long ago.
    ///
    /// A count while nobody else is at work is exact. Otherwise there is no more than what was found and came meanwhile, if nothing
    /// moved and all who were at work have booked; and no less than what was found without what went meanwhile and what is
    /// still to be booked.
    pub(crate) fn recount(&self, count: impl Fn() -> io::Result<Used>) {
        let _one = self.counting.lock();
        if self.takes_turn(0) {
            self.count_alone(count);
        }
    }

    /// The same without need when so much went that the books may have become too low: by who counts elsewhere, or here.
    pub(crate) fn freshen(&self, count: impl Fn() -> io::Result<Used>) {
        if !self.takes_turn(self.limits.bytes / TURNOVER + 1) {
            return;
        }
        match self.elsewhere.0.get() {
            Some(start) => start(),
            None => self.count_now(count),
        }
    }

    /// What who was told by [`Meter::count_elsewhere`] has to do.
    pub(crate) fn count_now(&self, count: impl Fn() -> io::Result<Used>) {
        let _one = self.counting.lock();
        self.count_alone(count);
    }

    /// Has counts without need made by `start`, which returns at once. The first caller stays.
    pub(crate) fn count_elsewhere(&self, start: impl Fn() + Send + Sync + 'static) {
        if self.elsewhere.0.set(Box::new(start)).is_err() {
            log::debug!("counts are made elsewhere already");
        }
    }

    /// Whether it is time to count, and `turned` bytes at least went since the last time: nobody else counts for a while then.
    fn takes_turn(&self, turned: u64) -> bool {
        let mut books = self.books.lock();
        if books.turned < turned {
            return false;
        }
        let now = Instant::now();
        let is_due = books.next_count.is_none_or(|next| now >= next);
        if is_due {
            books.next_count = Some(now + PAUSE);
            books.turned = 0;
        }
        is_due
    }

    fn count_alone(&self, count: impl Fn() -> io::Result<Used>) {
        let start = Instant::now();
        for _ in 0..TRIES {
            let before = {
                let books = self.books.lock();
                (books.busy, books.turn, books.moves, books.came, books.went)
            };
            let found = match count() {
                Ok(found) => found,
                Err(e) => {
                    log::warn!("count what the upper directory holds: {e}");
                    break;
                }
            };
            let mut books = self.books.lock();
            let settled = books.busy == 0 && books.moves == before.2;
            if settled && before.0 == 0 && books.turn == before.1 {
                books.used = found;
                break;
            }
            if settled {
                books.used = books.used.least(found.plus(books.came.minus(before.3)));
            }
            let sure = found.minus(books.went.minus(before.4)).minus(books.reserved);
            books.used = books.used.most(sure);
        }
        let took = start.elapsed();
        self.books.lock().next_count = Some(start + took + PAUSE.max(took * REST));
    }

    /// Shows the limits as the size of the filesystem, and never more room than it has itself.
    pub(crate) fn show(&self, stat: &mut FsStat) {
        let (limits, used) = (self.limits, self.used());
        if limits.bytes != u64::MAX {
            let unit = u64::from(stat.frsize.max(1));
            let free = limits.bytes.saturating_sub(used.bytes) / unit;
            stat.blocks = stat.blocks.min(limits.bytes / unit);
            stat.bfree = stat.bfree.min(free).min(stat.blocks);
            stat.bavail = stat.bavail.min(free).min(stat.blocks);
        }
        if limits.inodes != u64::MAX {
            let free = limits.inodes.saturating_sub(used.inodes);
            // A filesystem that has any number of them says 0.
            let bounded = stat.files > 0;
            stat.files = if bounded { stat.files.min(limits.inodes) } else { limits.inodes };
            stat.ffree = if bounded { stat.ffree.min(free) } else { free }.min(stat.files);
        }
    }
}

#[cfg(test)]
mod tests;
