//! The program is killed before every change it makes on disk. Whatever it was doing, the next one that opens the store
//! finds each layer whole or gone, and leaves nothing behind that a store in which nothing ever crashed would not have.
//!
//! A scene is one command on a prepared store. It is played undisturbed once, which gives the two states that are allowed
//! (names of everything in the root and in the directory of counts, before and after it) and the number of its changes. Then it
//! is killed before its first change, its second and so on; after each kill `plyfs layer ls`, a fresh process, opens the
//! store, and what is there has to be one of the two states and sound. A killed `layer mount` may have mounted: then the mount
//! is counted once, and `layer umount` takes it back.

mod play;
mod scenes;

use crate::driver_kit;
use crate::every_driver;
use play::Play;

fn every_command(store: &driver_kit::Store) {
    let play = Play::open(store.driver.name());
    for scene in scenes::ALL {
        play.every_step(scene);
    }
    scenes::storage_of_others_stays(&play);
}

fn the_first_command(store: &driver_kit::Store) {
    Play::bare(store.driver.name()).every_step(&scenes::FIRST);
}

every_driver! {
    killed, every_command;
    killed_first, the_first_command;
}
