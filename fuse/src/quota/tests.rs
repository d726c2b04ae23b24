use std::cell::Cell;

use super::*;

fn meter(bytes: u64, inodes: u64) -> Meter {
    let options = Options { size: Some(bytes), nr_inodes: Some(inodes), ..Options::default() };
    Meter::new(&options).unwrap()
}

fn used(bytes: u64, inodes: u64) -> Used {
    Used { bytes, inodes }
}

#[test]
fn without_limits_there_is_no_meter() {
    assert!(Meter::new(&Options::default()).is_none());
    let one = Meter::new(&Options { nr_inodes: Some(1), ..Options::default() }).unwrap();
    drop(one.reserve(used(u64::MAX - 1, 1)).unwrap());
    assert!(one.reserve(used(0, 2)).is_none());
}

#[test]
fn room_that_is_set_aside_is_nobody_elses() {
    let meter = meter(10, 2);
    let first = meter.reserve(used(6, 1)).unwrap();
    assert!(meter.reserve(used(5, 0)).is_none());
    assert_eq!(meter.free(), used(4, 1));
    first.came(used(2, 1));
    assert_eq!(meter.used(), used(2, 1));
    let second = meter.reserve(used(8, 1)).unwrap();
    drop(second);
    assert_eq!((meter.used(), meter.free()), (used(2, 1), used(8, 1)), "nothing came of it");
}

#[test]
fn what_takes_nothing_is_welcome_beyond_the_limit() {
    let meter = meter(10, 1);
    meter.begin().came(used(12, 3));
    assert!(meter.is_over());
    assert!(meter.reserve(used(1, 0)).is_none() && meter.reserve(used(0, 1)).is_none());
    let shrink = Change { came: Used::default(), went: used(5, 1) };
    meter.reserve(Used::default()).unwrap().settle(shrink);
    assert_eq!(meter.used(), used(7, 2));
}

#[test]
fn a_count_in_quiet_is_believed_and_not_made_again_at_once() {
    let meter = meter(10, 10);
    meter.start(used(9, 9));
    meter.recount(|| Ok(used(3, 4)));
    assert_eq!(meter.used(), used(3, 4));
    meter.recount(|| panic!("counted again within a second"));
}

#[test]
fn a_count_while_others_work_is_right_within_what_came() {
    let meter = meter(100, 100);
    meter.start(used(50, 50));
    let calls = Cell::new(0);
    // Each time something comes meanwhile, which the count may have seen or not.
    meter.recount(|| {
        calls.set(calls.get() + 1);
        meter.begin().came(used(5, 1));
        Ok(used(20, 10))
    });
    assert_eq!(calls.get(), 3);
    assert_eq!(meter.used(), used(25, 11));
}

#[test]
fn a_count_is_not_believed_while_somebody_has_not_booked_or_something_moved() {
    for moves in [false, true] {
        let meter = meter(100, 100);
        meter.start(used(50, 50));
        let busy = Cell::new(None);
        meter.recount(|| {
            let mut op = meter.begin();
            op.moves = moves;
            busy.set((!moves).then_some(op));
            Ok(used(20, 10))
        });
        drop(busy);
        assert_eq!(meter.used(), used(50, 50));
    }
}

#[test]
fn a_count_while_others_work_raises_the_books_to_what_is_surely_there() {
    let meter = meter(100, 100);
    meter.start(used(10, 10));
    let _writer = meter.reserve(used(3, 0)).unwrap();
    meter.recount(|| {
        meter.begin().settle(Change { came: Used::default(), went: used(5, 1) });
        Ok(used(40, 20))
    });
    assert_eq!(meter.used(), used(32, 19));
}

#[test]
fn what_was_never_booked_is_found_when_much_has_gone() {
    let meter = meter(160, 100);
    let goes = || meter.begin().settle(Change { came: Used::default(), went: used(6, 0) });
    goes();
    meter.freshen(|| panic!("nothing much has gone"));
    goes();
    meter.freshen(|| Ok(used(70, 7)));
    assert_eq!(meter.used(), used(70, 7));
    (0..9).for_each(|_| goes());
    meter.freshen(|| panic!("counted again within a second"));
}

#[test]
fn the_filesystem_shows_the_limits_and_never_more_than_it_has() {
    let meter = meter(1 << 20, 100);
    meter.start(used(5000, 7));
    let disk = FsStat {
        blocks: 1000,
        bfree: 500,
        bavail: 400,
        files: 5000,
        ffree: 4000,
        frsize: 4096,
        bsize: 4096,
        ..FsStat::default()
    };
    let mut shown = disk;
    meter.show(&mut shown);
    assert_eq!((shown.blocks, shown.bfree, shown.bavail), (256, 254, 254));
    assert_eq!((shown.files, shown.ffree), (100, 93));
    let mut nearly_full = FsStat { bfree: 10, bavail: 5, ffree: 3, ..disk };
    meter.show(&mut nearly_full);
    assert_eq!((nearly_full.bfree, nearly_full.bavail, nearly_full.ffree), (10, 5, 3));
    let mut endless = FsStat { files: 0, ffree: 0, ..disk };
    meter.show(&mut endless);
    assert_eq!((endless.files, endless.ffree), (100, 93));
}
