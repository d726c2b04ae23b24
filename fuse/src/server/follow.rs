//! Staying on the processor of the caller.
//!
//! A request goes to a thread that sleeps and its answer to a caller that sleeps. On one processor that is two
//! switches; between two it is two wake-ups of an idle processor, which on a virtual machine take twenty times
//! as long. The kernel does not know that the caller is about to wait, so it picks an idle processor
//! for the thread. Whoever asks alone is followed; as soon as others ask too, the thread is free.

use std::cell::RefCell;

use crate::sys;

/// Requests of one caller between two looks at where it is.
const LOOK_AGAIN: u32 = 64;
/// Requests during which nobody is followed once several asked in turns.
const LET_GO: u32 = 256;
/// How often callers that asked shortly before ask again in turns until they are several.
const TURNS: u32 = 4;
/// How many callers count as having asked shortly before.
const RECENT: usize = 4;

/// What the thread that receives requests knows of its callers.
#[derive(Debug, Default)]
struct Callers {
    /// The last ones, the newest first.
    recent: [u32; RECENT],
    /// Requests of the newest.
    count: u32,
    turns: u32,
    /// Requests left for which nobody is followed.
    free: u32,
    /// The processor we are kept to.
    kept: Option<usize>,
}

thread_local! {
    static CALLERS: RefCell<Callers> = RefCell::default();
}

/// Goes where the caller is, if it asks alone.
pub(super) fn follow(caller: u32) {
    CALLERS.with_borrow_mut(|callers| callers.asked(caller));
}

impl Callers {
    fn asked(&mut self, caller: u32) {
        if self.free > 0 {
            self.free -= 1;
            return;
        }
        if caller == self.recent[0] {
            self.count += 1;
            if self.count % LOOK_AGAIN == 0 {
                self.keep(sys::processor_of(caller));
            }
            return;
        }
        let seen = self.recent.iter().position(|known| *known == caller);
        self.recent[..=seen.unwrap_or(RECENT - 1)].rotate_right(1);
        self.recent[0] = caller;
        self.turns = match seen {
            Some(_) if self.count < LOOK_AGAIN => self.turns + 1,
            _ => 0,
        };
        self.count = 0;
        if self.turns >= TURNS {
            (self.turns, self.free) = (0, LET_GO);
            self.keep(None);
        } else {
            self.keep(sys::processor_of(caller));
        }
    }

    fn keep(&mut self, processor: Option<usize>) {
        if self.kept == processor {
            return;
        }
        match processor {
            None => sys::roam(),
            Some(processor) => {
                if let Err(e) = sys::pin(processor) {
                    log::debug!("stay on processor {processor}: {e}");
                }
            }
        }
        self.kept = processor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_in_turns_are_not_followed() {
        let mut callers = Callers::default();
        (1..100).for_each(|caller| callers.asked(caller));
        assert_eq!(callers.free, 0, "one after the other");
        (0..20).for_each(|n| callers.asked(7 + n % 2));
        assert!(callers.free > 0 && callers.kept.is_none(), "in turns");
        (0..LET_GO).for_each(|_| callers.asked(7));
        assert_eq!(callers.free, 0);
    }
}
