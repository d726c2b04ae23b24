//! Makes a failing case small: fewer operations, then less in the layers, then fewer operations again.

use std::time::{Duration, Instant};

use super::case::{Case, part_hidden_links};
use super::duel::Failure;
use super::model::Who;

/// How long a reader may be kept waiting.
const LIMIT: Duration = Duration::from_secs(90);

/// The smallest case found that still fails, and how.
pub fn shrink(
    case: Case,
    failure: Failure,
    fails: &dyn Fn(&Case) -> Option<Failure>,
) -> (Case, Failure) {
    let mut shrink = Shrink { case, failure, fails, end: Instant::now() + LIMIT };
    // A panic that is expected is not worth a printed trace a try.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut ops = shrink.case.clone();
    ops.ops.truncate(shrink.failure.at);
    shrink.attempt(ops);
    shrink.operations();
    shrink.layers();
    shrink.operations();
    std::panic::set_hook(hook);
    (shrink.case, shrink.failure)
}

struct Shrink<'a> {
    case: Case,
    failure: Failure,
    fails: &'a dyn Fn(&Case) -> Option<Failure>,
    end: Instant,
}

impl Shrink<'_> {
    /// Takes the candidate if it fails too.
    fn attempt(&mut self, mut candidate: Case) -> bool {
        if Instant::now() > self.end {
            return false;
        }
        part_hidden_links(&mut candidate.layers, Who::me());
        let Some(failure) = (self.fails)(&candidate) else { return false };
        candidate.ops.truncate(failure.at);
        (self.case, self.failure) = (candidate, failure);
        true
    }

    /// Takes out runs of operations, long ones first.
    fn operations(&mut self) {
        let mut run = self.case.ops.len().div_ceil(2);
        while run > 0 {
            let mut start = self.case.ops.len().saturating_sub(run);
            loop {
                let mut candidate = self.case.clone();
                let end = (start + run).min(candidate.ops.len());
                if start < end {
                    candidate.ops.drain(start..end);
                    self.attempt(candidate);
                }
                if start == 0 {
                    break;
                }
                start = start.saturating_sub(run);
            }
            run /= 2;
        }
    }

    /// Takes out lowers, paths of layers, and attributes.
    fn layers(&mut self) {
        let mut index = self.case.layers.len();
        while index > 1 && self.case.layers.len() > 2 {
            index -= 1;
            let mut candidate = self.case.clone();
            candidate.layers.remove(index);
            candidate.dialects.remove(index);
            self.attempt(candidate);
        }
        for index in 0..self.case.layers.len() {
            let paths: Vec<String> =
                self.case.layers[index].items.keys().filter(|p| !p.is_empty()).cloned().collect();
            for path in paths {
                let mut candidate = self.case.clone();
                candidate.layers[index].remove(&path);
                if candidate.layers[index].items.len() < self.case.layers[index].items.len() {
                    self.attempt(candidate);
                }
            }
        }
        let mut candidate = self.case.clone();
        for item in candidate.layers.iter_mut().flat_map(|layer| layer.items.values_mut()) {
            (item.uid, item.gid) = (Who::me().uid, Who::me().gid);
            item.xattrs.clear();
        }
        self.attempt(candidate);
    }
}
