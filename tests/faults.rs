//! Crashes and failing disks: whatever happens in the middle of an operation, its tree is the old
//! one or the new one.
//!
//! A scene is one operation on a prepared stack. A trial plays it in a child process that is killed
//! before its N-th change on disk, or whose N-th change and all later ones fail, for every N.
//! `PLYFS_SCENE=text` plays only the scenes whose name has the text, `PLYFS_FAULTS=all` plays each
//! failing change with both error numbers and not with one of them.

mod full_disk;
mod killed_mount;
mod moves;
mod scene;
mod scenes;
mod seen;
mod trial;

use crate::common::rootless;
use crate::{needs, this_test};
use plyfs_fuse::options::Whiteouts;

/// The child of a trial; for anybody else nothing.
#[test]
fn child() {
    trial::child();
}

macro_rules! trials {
    ($($name:ident, $rootless:ident: $scenes:path, $whiteouts:ident;)+) => {$(
        #[test]
        fn $name() {
            needs!(Root);
            trial::play(this_test!(), $scenes(), Whiteouts::$whiteouts);
        }

        #[test]
        fn $rootless() {
            needs!(UserNs);
            if !rootless::run(this_test!()) {
                trial::play(this_test!(), $scenes(), Whiteouts::$whiteouts);
            }
        }
    )+};
}

trials! {
    copy_up_is_whole_or_absent, copy_up_is_whole_or_absent_rootless: scenes::copy_up, Device;
    copy_up_is_whole_or_absent_dot, copy_up_is_whole_or_absent_dot_rootless: scenes::copy_up, Dot;
    metacopy_is_whole_or_absent, metacopy_is_whole_or_absent_rootless: scenes::metacopy, Device;
    removal_is_done_or_not, removal_is_done_or_not_rootless: scenes::remove, Device;
    removal_is_done_or_not_dot, removal_is_done_or_not_dot_rootless: scenes::remove, Dot;
    creation_is_done_or_not, creation_is_done_or_not_rootless: scenes::create, Device;
    creation_is_done_or_not_dot, creation_is_done_or_not_dot_rootless: scenes::create, Dot;
    a_file_moves_or_not, a_file_moves_or_not_rootless: moves::files, Device;
    a_file_moves_or_not_dot, a_file_moves_or_not_dot_rootless: moves::files, Dot;
    a_directory_moves_or_not, a_directory_moves_or_not_rootless: moves::directories, Device;
    a_directory_moves_or_not_dot, a_directory_moves_or_not_dot_rootless: moves::directories, Dot;
    an_exchange_is_done_or_not, an_exchange_is_done_or_not_rootless: moves::exchanges, Device;
    an_exchange_is_done_or_not_dot, an_exchange_is_done_or_not_dot_rootless: moves::exchanges, Dot;
}
