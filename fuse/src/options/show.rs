//! `Options` -> canonical `-o` text.
//!
//! Parsing the text gives an equal value, warnings aside. Only what differs from the
//! default is written, in one fixed order.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use super::{
    DEFAULT_TIMEOUT, Io, MountFlags, Namespace, Options, RedirectDir, Transport, Whiteouts,
    XattrPermissions,
};

impl Options {
    /// The canonical list, with the bytes of paths as they are.
    pub fn to_list(&self) -> OsString {
        let mut list = List(Vec::new());
        list.layers(self);
        list.owners(self);
        list.behaviour(self);
        list.mount(&self.mount);
        OsString::from_vec(list.0)
    }
}

/// The canonical list; bytes that are not UTF-8 show as replacement characters, so
/// programs use `to_list`.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_list().to_string_lossy())
    }
}

struct List(Vec<u8>);

impl List {
    fn word(&mut self, word: &str) {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(word.as_bytes());
    }

    fn word_if(&mut self, condition: bool, word: &str) {
        if condition {
            self.word(word);
        }
    }

    /// `name`, or `noname`, or nothing.
    fn choice(&mut self, name: &str, value: Option<bool>) {
        match value {
            Some(true) => self.word(name),
            Some(false) => self.word(&format!("no{name}")),
            None => {}
        }
    }

    fn shown<T: fmt::Display>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.word(&format!("{name}={value}"));
        }
    }

    fn escaped(&mut self, name: &str, value: &[u8]) {
        self.word(name);
        self.0.push(b'=');
        self.value(value);
    }

    /// Every character that separates something gets a backslash.
    fn value(&mut self, value: &[u8]) {
        for byte in value {
            if matches!(byte, b'\\' | b',' | b':' | b'"') {
                self.0.push(b'\\');
            }
            self.0.push(*byte);
        }
    }

    fn layers(&mut self, options: &Options) {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let lowers = options.lowers.iter().map(|path| (":", path));
        let data = options.data_lowers.iter().map(|path| ("::", path));
        for (index, (colons, path)) in lowers.chain(data).enumerate() {
            if index == 0 {
                self.word("lowerdir=");
            } else {
                self.0.extend_from_slice(colons.as_bytes());
            }
            self.value(&bytes(path));
        }
        for (name, path) in [("upperdir", &options.upper), ("workdir", &options.work)] {
            if let Some(path) = path {
                self.escaped(name, &bytes(path));
            }
        }
    }

    fn owners(&mut self, options: &Options) {
        for (name, map) in [
            ("uidmapping", &options.uid_map),
            ("gidmapping", &options.gid_map),
            ("lower_uidmapping", &options.lower_uid_map),
            ("lower_gidmapping", &options.lower_gid_map),
        ] {
            self.shown(name, Some(map).filter(|map| !map.is_empty()));
        }
        self.shown("squash_to_uid", options.squash_uid);
        self.shown("squash_to_gid", options.squash_gid);
        self.shown("squash_unmapped", options.squash_unmapped);
        match options.xattr_permissions {
            XattrPermissions::Off => {}
            XattrPermissions::Security => self.word("xattr_permissions=1"),
            XattrPermissions::User => self.word("xattr_permissions=2"),
        }
    }

    fn behaviour(&mut self, options: &Options) {
        match options.namespace {
            Namespace::Auto => {}
            Namespace::Trusted => self.word("nouserxattr"),
            Namespace::User => self.word("userxattr"),
        }
        match options.redirect_dir {
            RedirectDir::Auto => {}
            RedirectDir::On => self.word("redirect_dir=on"),
            RedirectDir::Off => self.word("redirect_dir=off"),
            RedirectDir::Copy => self.word("redirect_dir=copy"),
        }
        match options.whiteouts {
            Whiteouts::Auto => {}
            Whiteouts::Device => self.word("whiteouts=device"),
            Whiteouts::Dot => self.word("whiteouts=dot"),
            Whiteouts::Xattr => self.word("whiteouts=xattr"),
        }
        self.word_if(options.metacopy, "metacopy=on");
        self.word_if(options.volatile, "volatile");
        self.word_if(!options.fsync, "fsync=0");
        if options.timeout != DEFAULT_TIMEOUT {
            self.word(&format!("timeout={}", seconds(options.timeout)));
        }
        self.word_if(options.static_nlink, "static_nlink");
        self.word_if(options.noacl, "noacl");
        self.word_if(options.ino32, "ino32_t");
        self.word_if(options.noxattrs, "noxattrs=1");
        self.word_if(options.nfs_export, "nfs_export=on");
        match options.io {
            Io::Auto => {}
            Io::Handles => self.word("io=handles"),
            Io::Handleless => self.word("io=handleless"),
            Io::Passthrough => self.word("io=passthrough"),
        }
        match options.transport {
            Transport::Auto => {}
            Transport::Ring => self.word("transport=ring"),
            Transport::Classic => self.word("transport=classic"),
        }
        self.shown("size", options.size);
        self.shown("nr_inodes", options.nr_inodes);
    }

    fn mount(&mut self, mount: &MountFlags) {
        for (name, text) in [("fsname", &mount.fsname), ("subtype", &mount.subtype)] {
            if let Some(text) = text {
                self.escaped(name, text.as_bytes());
            }
        }
        self.word_if(mount.read_only, "ro");
        self.choice("suid", mount.suid);
        self.choice("dev", mount.dev);
        self.choice("exec", mount.exec);
        self.choice("atime", mount.atime);
        self.choice("diratime", mount.diratime);
        self.word_if(mount.sync, "sync");
        self.word_if(mount.dirsync, "dirsync");
        self.word_if(mount.remount, "remount");
        self.choice("allow_other", mount.allow_other);
        self.word_if(mount.allow_root, "allow_root");
        self.shown("max_write", mount.max_write);
        self.shown("max_read", mount.max_read);
        self.word_if(mount.debug, "debug");
        if let Some(labels) = &mount.context {
            self.word(labels);
        }
    }
}

/// Seconds without needless zeros.
fn seconds(time: Duration) -> String {
    let text = format!("{}.{:09}", time.as_secs(), time.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
