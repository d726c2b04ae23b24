use super::*;

#[test]
fn an_inode_in_use_waits_once_however_often_it_is_forgotten() {
    let make = |ino| Inode::new(ino, sys::S_IFREG, State::default());
    let table = Table::new(Arc::new(make(Ino::ROOT)), false, None);
    let intern = |number| table.intern((number, 1), |_| true, |number| number, make);
    let (used, other) = (intern(7), intern(8));
    for _ in 0..3 {
        table.forget(used.ino, used.lookups());
        table.forget(other.ino, 0);
    }
    assert_eq!(*table.limbo.lock().queue(), [used.ino]);
    drop(used);
    table.forget(other.ino, 1);
    assert_eq!(table.count(), 2, "the one in use is left");
    assert_eq!(*table.limbo.lock().queue(), [other.ino]);
}
