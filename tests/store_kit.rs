//! What tests of the store share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plyfs::store::Store;

use crate::common::cmd::{Cmd, Done};
use crate::driver_kit;

/// A store of a driver, used through the command line.
pub struct Box_<'a>(pub &'a driver_kit::Store);

impl Box_<'_> {
    /// A call of the program on the store.
    pub fn plyfs(&self, words: &[&str]) -> Cmd {
        self.plyfs_on(self.0.driver.name(), words)
    }

    /// The same with another driver.
    pub fn plyfs_on(&self, driver: &str, words: &[&str]) -> Cmd {
        let root = self.0.root();
        Cmd::plyfs().arg("--root").arg(root).args(["--driver", driver]).args(words)
    }

    /// One that succeeds.
    pub fn does(&self, words: &[&str]) -> Done {
        self.plyfs(words).succeeds()
    }

    /// Fills a new layer from an archive of `tree`.
    pub fn fill(&self, id: &str, parent: Option<&str>, tree: &Path) -> PathBuf {
        let archive = self.0.sandbox.at(format!("{id}.tar"));
        Cmd::new("tar").arg("-cf").arg(&archive).arg("-C").arg(tree).arg(".").succeeds();
        let mut words = vec!["layer", "create", "--read-only"];
        words.extend(parent.iter().flat_map(|parent| ["--parent", parent]));
        self.does(&[&words[..], &[id]].concat());
        self.does(&["layer", "apply", id, archive.to_str().unwrap()]);
        archive
    }

    /// The store, opened by this process.
    pub fn open(&self) -> plyfs::Result<Store> {
        let driver = driver_kit::open(self.0.driver.name(), &self.0.root());
        Store::open(&self.0.root(), &self.0.root().join("run"), Arc::from(driver))
    }
}

/// A small tree to fill layers from.
pub fn tree(store: &driver_kit::Store) -> PathBuf {
    let tree = store.sandbox.dir("tree");
    fs::create_dir(tree.join("d")).unwrap();
    for (name, text) in [("a", "one\n"), ("d/b", "two\n"), ("d/c", "three\n")] {
        fs::write(tree.join(name), text).unwrap();
    }
    std::os::unix::fs::symlink("a", tree.join("l")).unwrap();
    tree
}
