//! Requests of a FUSE connection through an io_uring (linux/fuse.h: `fuse_uring_cmd_req`), as safe calls.
//!
//! A [`Slot`] is the memory of one request and its answer. It is owned by one side at a time: by the
//! kernel from [`Ring::register`] or [`Ring::commit`] until the [`Event`] that hands it over, by
//! whoever has it else. So nobody here can look at memory that the kernel writes to.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// `FUSE_IO_URING_CMD_REGISTER` and `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Submissions under way at once; a full queue is submitted and goes on.
const SUBMISSIONS: u32 = 64;
/// Completions that fit; the kernel keeps what does not.
const COMPLETIONS: u32 = 512;
/// What a completion of the bell is told by.
const BELL: u64 = u64::MAX;
/// The device in the table of registered files.
const DEVICE: types::Fixed = types::Fixed(0);
/// Where struct io_uring_sqe has `len`.
const SQE_LEN: usize = 24;

/// Zeroed memory that takes room where it is touched only.
#[derive(Debug)]
pub struct Area {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an area is plain memory with one owner.
unsafe impl Send for Area {}

impl Area {
    /// Maps `len` bytes.
    pub fn new(len: usize) -> io::Result<Area> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping touches no memory that is in use.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped. A huge page would take two MiB for the first byte.
        if unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) } != 0 {
            log::debug!("small pages: {}", io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Area { start, len })
    }

    /// Gives the memory after the first `keep` bytes back; it reads as zeros.
    pub fn shrink(&mut self, keep: usize) {
        let keep = keep.next_multiple_of(1 << 16).min(self.len);
        // SAFETY: the range is inside the mapping, which nobody else has.
        let done = unsafe {
            let start = self.start.as_ptr().add(keep);
            libc::madvise(start.cast(), self.len - keep, libc::MADV_DONTNEED)
        };
        if done != 0 {
            log::debug!("give memory back: {}", io::Error::last_os_error());
        }
    }
}

impl Deref for Area {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` initialised bytes, and is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Area {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody borrows from what is dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The memory of one request.
#[derive(Debug)]
pub struct Slot {
    /// `struct fuse_uring_req_header`, with room behind it that the kernel leaves alone.
    pub head: Area,
    /// What follows the request's own structure, and the answer.
    pub body: Area,
}

/// What wakes the thread of a ring.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A bell.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the thread, now or when it waits next.
    pub fn ring(&self) {
        // Full after 2^64 strokes, at which it is rung already.
        if let Err(e) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            log::debug!("wake a ring: {e}");
        }
    }
}

/// What a ring has to tell.
#[derive(Debug)]
pub enum Event {
    /// A request came into the slot registered under this number.
    Request(usize, Slot),
    /// The kernel will not use this slot again, for the reason of an errno.
    Refused(usize, Slot, i32),
    /// The bell was rung.
    Rung,
}

/// An io_uring on the device of a FUSE connection. Only the thread that made it may use it, since the kernel fills
/// slots as work of that thread.
pub struct Ring {
    ring: IoUring<squeue::Entry128>,
    /// The slots that the kernel has.
    slots: Vec<Option<Slot>>,
    bell: std::sync::Arc<Bell>,
    /// Keeps a ring on its thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

fn build() -> io::Result<IoUring<squeue::Entry128>> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS)
}

/// Whether rings can be made that carry commands.
pub fn try_ring() -> io::Result<()> {
    let ring = build()?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if probe.is_supported(opcode::UringCmd80::CODE) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

impl Ring {
    /// A ring on a connection's device.
    pub fn new(device: impl AsFd, bell: std::sync::Arc<Bell>) -> io::Result<Ring> {
        let ring = build()?;
        ring.submitter().register_files(&[device.as_fd().as_raw_fd()])?;
        let mut ring = Ring { ring, slots: Vec::new(), bell, _here: std::marker::PhantomData };
        ring.listen()?;
        Ok(ring)
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        loop {
            // SAFETY: an entry refers to a slot that `self.slots` keeps, or to the bell that `self` keeps.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let bell = types::Fd(self.bell.0.as_raw_fd());
        let poll = opcode::PollAdd::new(bell, libc::POLLIN as u32).multi(true).build();
        self.push(&squeue::Entry128::from(poll.user_data(BELL)))
    }

    fn command(&mut self, index: usize, command: u32, queue: u16, commit: u64) -> squeue::Entry128 {
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit.to_ne_bytes());
        words[16..18].copy_from_slice(&queue.to_ne_bytes());
        opcode::UringCmd80::new(DEVICE, command).cmd(words).build().user_data(index as u64)
    }

    /// Offers a slot to a queue of the connection; returns its number. A refusal comes as an event, which
    /// is there when this returns.
    pub fn register(&mut self, queue: u16, mut slot: Slot) -> io::Result<usize> {
        let index = self.slots.len();
        let parts = [&mut slot.head, &mut slot.body]
            .map(|area| libc::iovec { iov_base: area.start.as_ptr().cast(), iov_len: area.len });
        let mut entry = self.command(index, REGISTER, queue, 0);
        // SAFETY: an Entry128 is a struct io_uring_sqe of 128 bytes; `addr` and `len` of a command are
        // plain numbers at these places (linux/io_uring.h).
        unsafe {
            let raw = (&raw mut entry).cast::<u8>();
            raw.add(16).cast::<u64>().write_unaligned(parts.as_ptr() as u64);
            raw.add(SQE_LEN).cast::<u32>().write_unaligned(parts.len() as u32);
        }
        self.slots.push(Some(slot));
        self.push(&entry)?;
        // The kernel reads `parts` while it takes the entry, so it has to be taken here.
        while !self.ring.submission().is_empty() {
            self.submit()?;
        }
        Ok(index)
    }

    /// Hands an answer over, and the slot for the next request. It takes effect at the next submission.
    pub fn commit(&mut self, index: usize, queue: u16, commit: u64, slot: Slot) -> io::Result<()> {
        let entry = self.command(index, COMMIT_AND_FETCH, queue, commit);
        let Some(place) = self.slots.get_mut(index) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        *place = Some(slot);
        self.push(&entry)
    }

    /// Submits what was committed.
    pub fn submit(&self) -> io::Result<()> {
        settled(self.ring.submit())
    }

    /// Submits, and waits for an event.
    pub fn wait(&self) -> io::Result<()> {
        settled(self.ring.submit_and_wait(1))
    }

    /// The same, but no longer than `limit`; false when nothing came.
    pub fn wait_for(&self, limit: std::time::Duration) -> io::Result<bool> {
        let time = types::Timespec::from(limit);
        let args = types::SubmitArgs::new().timespec(&time);
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(e) if e.raw_os_error() == Some(libc::ETIME) => Ok(false),
            result => settled(result).map(|()| true),
        }
    }

    /// Slots that the kernel has.
    pub fn outstanding(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// The next event that is there.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            let Some(done) = self.ring.completion().next() else { return Ok(None) };
            if done.user_data() == BELL {
                if !cqueue::more(done.flags()) {
                    self.listen()?;
                }
                return Ok(Some(Event::Rung));
            }
            let index = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else { continue };
            return Ok(Some(match done.result() {
                0.. => Event::Request(index, slot),
                code => Event::Refused(index, slot, -code),
            }));
        }
    }

    /// Whether more events are there.
    pub fn has_event(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Gives memory back of slots that the kernel has and that wait for a request: the kernel fills a slot as
    /// work of this thread, which is here now.
    pub fn shrink(&mut self, keep: usize) {
        self.slots.iter_mut().flatten().for_each(|slot| slot.body.shrink(keep));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel ends its use of them later, at a time that nobody tells.
        self.slots.drain(..).flatten().for_each(std::mem::forget);
    }
}

/// Interrupted, or first things first: whoever waits looks for events and comes again.
fn settled(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
            Ok(())
        }
        result => result.map(drop),
    }
}

/// The processors that this thread may run on and that run.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Where threads ran before the first was pinned.
static EVERYWHERE: OnceLock<CpuSet> = OnceLock::new();

/// Keeps this thread, and those it starts, on a processor, if it may run there.
pub fn pin(cpu: usize) -> io::Result<()> {
    let before = sched_getaffinity(None)?;
    let everywhere = EVERYWHERE.get_or_init(|| before);
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU || !everywhere.is_set(cpu) {
        roam();
        return Ok(());
    }
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets this thread run where those do that are not pinned, whoever started it.
pub fn roam() {
    if let Some(set) = EVERYWHERE.get() {
        if let Err(e) = sched_setaffinity(None, set) {
            log::debug!("leave a processor: {e}");
        }
    }
}

/// Takes this thread away from a processor, if there is another for it.
pub fn leave(cpu: usize) -> io::Result<()> {
    let mut others = match EVERYWHERE.get() {
        Some(set) => *set,
        None => sched_getaffinity(None)?,
    };
    others.unset(cpu);
    if others.count() == 0 { Ok(()) } else { Ok(sched_setaffinity(None, &others)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_zeroed_kept_and_given_back() {
        let mut area = Area::new(1 << 20).unwrap();
        assert!(area.iter().all(|byte| *byte == 0));
        area.fill(7);
        area.shrink(1);
        assert_eq!((area[0], area[65_535], area[65_536], area[(1 << 20) - 1]), (7, 7, 0, 0));
    }

    #[test]
    fn a_device_without_a_connection_refuses_a_slot() {
        let Ok(device) = std::fs::File::open("/dev/fuse") else { return };
        if try_ring().is_err() {
            return;
        }
        let mut ring = Ring::new(&device, std::sync::Arc::new(Bell::new().unwrap())).unwrap();
        let slot = Slot { head: Area::new(4096).unwrap(), body: Area::new(1 << 20).unwrap() };
        assert_eq!(ring.register(0, slot).unwrap(), 0);
        let Some(Event::Refused(0, _, code)) = ring.next_event().unwrap() else { panic!() };
        assert!(code != 0);
        assert_eq!(ring.outstanding(), 0);
    }

    #[test]
    fn a_bell_is_heard_however_often_it_is_rung() {
        let Ok(device) = std::fs::File::open("/dev/null") else { return };
        if try_ring().is_err() {
            return;
        }
        let bell = std::sync::Arc::new(Bell::new().unwrap());
        let mut ring = Ring::new(&device, bell.clone()).unwrap();
        for _ in 0..3 {
            let bell = bell.clone();
            let other = std::thread::spawn(move || bell.ring());
            ring.wait().unwrap();
            assert!(matches!(ring.next_event().unwrap(), Some(Event::Rung)));
            other.join().unwrap();
        }
    }
}
