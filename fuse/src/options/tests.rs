//! Tables of lists and what they mean, and random options through text and back.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    IdMap, IdRange, Io, MountFlags, Namespace, Options, RedirectDir, Transport, Whiteouts,
    XattrPermissions,
};

fn parse(list: &str) -> Options {
    Options::parse(list).unwrap()
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn lower_lists_split_at_plain_colons_only() {
    for (list, lowers, data) in [
        ("lowerdir=/a", vec!["/a"], vec![]),
        ("lowerdir=/a:b:/c", vec!["/a", "b", "/c"], vec![]),
        (r"lowerdir=/a\:b:/c\,d:/e\\:/f\g", vec!["/a:b", "/c,d", r"/e\", "/fg"], vec![]),
        ("lowerdir=/a:/b::/d1::/d2", vec!["/a", "/b"], vec!["/d1", "/d2"]),
        (r#"lowerdir="/a,b:/c""#, vec!["/a,b", "/c"], vec![]),
        (r#"lowerdir=/a"b,upperdir=/u"#, vec![r#"/a"b"#], vec![]),
        ("lowerdir=/a:/b::/d,lowerdir=/c", vec!["/c"], vec![]),
        (r"lowerdir+=/a:b,lowerdir+=/c\d,datadir+=/e\,f", vec!["/a:b", r"/c\d"], vec!["/e,f"]),
        ("lowerdir=/a,lowerdir+=/b", vec!["/a", "/b"], vec![]),
        ("lowerdir=/a=b", vec!["/a=b"], vec![]),
        (r"lowerdir=/a\", vec![r"/a\"], vec![]),
    ] {
        let options = parse(list);
        assert_eq!(options.lowers, paths(&lowers), "{list}");
        assert_eq!(options.data_lowers, paths(&data), "{list}");
        assert_eq!(options.warnings, Vec::<String>::new(), "{list}");
    }
}

const REFUSALS: &[(&str, &str)] = &[
    ("transport=wire", "option 'transport': bad value 'wire'; expected auto, ring, classic"),
    ("lowerdir=", "option 'lowerdir': bad value ''; expected lower[:lower...][::data...]"),
    ("lowerdir", "option 'lowerdir': needs a value; expected lower[:lower...][::data...]"),
    (
        "lowerdir=/a:",
        "option 'lowerdir': empty path in the list; expected lower[:lower...][::data...]",
    ),
    (
        "lowerdir=:/a",
        "option 'lowerdir': empty path in the list; expected lower[:lower...][::data...]",
    ),
    (
        "lowerdir=/a:::/b",
        "option 'lowerdir': empty path in the list; expected lower[:lower...][::data...]",
    ),
    (
        "lowerdir=/a::/b:/c",
        "option 'lowerdir': a lower after a data-only one; expected lower[:lower...][::data...]",
    ),
    ("upperdir=", "option 'upperdir': bad value ''; expected a directory"),
    ("workdir", "option 'workdir': needs a value; expected a directory"),
    ("plugins=a.so", "option 'plugins': layer plugins are not supported; leave the option out"),
    ("timeout=soon", "option 'timeout': bad value 'soon'; expected seconds, such as 1 or 0.5"),
    ("timeout=-1", "option 'timeout': bad value '-1'; expected seconds, such as 1 or 0.5"),
    ("timeout=.", "option 'timeout': bad value '.'; expected seconds, such as 1 or 0.5"),
    ("timeout=nan", "option 'timeout': bad value 'nan'; expected seconds, such as 1 or 0.5"),
    (
        "uidmapping=0:1",
        "option 'uidmapping': 2 numbers are not triples; expected on-disk:presented:length triples",
    ),
    (
        "squash_to_uid=-1",
        "option 'squash_to_uid': bad value '-1'; expected an id from 0 to 4294967294",
    ),
    (
        "squash_to_gid=4294967295",
        "option 'squash_to_gid': bad value '4294967295'; expected an id from 0 to 4294967294",
    ),
    ("xattr_permissions=3", "option 'xattr_permissions': bad value '3'; expected 0, 1, 2"),
    (
        "redirect_dir=yes",
        "option 'redirect_dir': bad value 'yes'; expected on, off, auto, follow, nofollow, copy",
    ),
    ("metacopy=maybe", "option 'metacopy': bad value 'maybe'; expected 0 or 1"),
    ("threaded=x", "option 'threaded': bad value 'x'; expected 0 or 1"),
    ("max_write=-4", "option 'max_write': bad value '-4'; expected a number of bytes"),
    ("verity=require", "option 'verity': digests of lower files cannot be checked; expected off"),
    ("verity=on", "option 'verity': digests of lower files cannot be checked; expected off"),
    ("context=", "option 'context': bad value ''; expected a label"),
    (
        "fsname=a\nb=,timeout=\n",
        "option 'timeout': bad value '\\n'; expected seconds, such as 1 or 0.5",
    ),
];

#[test]
fn refusals_name_the_option_and_what_is_expected() {
    for (list, line) in REFUSALS {
        let error = Options::parse(list).unwrap_err();
        assert_eq!(error.to_string(), *line, "{list}");
    }
    for list in ["lowerdir=//ostree/x/y", "lowerdir=/a://ostree/x/y", "lowerdir+=//ostree/x/y"] {
        let line = Options::parse(list).unwrap_err().to_string();
        assert!(line.contains("'//ostree/x/y' names a layer plugin"), "{line}");
    }
}

#[test]
fn ids_are_squashed_to_the_specific_id_whatever_the_order() {
    for (list, uid, gid) in [
        ("squash_to_root", Some(0), Some(0)),
        ("squash_to_root,squash_to_uid=7", Some(7), Some(0)),
        ("squash_to_gid=8,squash_to_root", Some(0), Some(8)),
        ("squash_to_uid=7", Some(7), None),
    ] {
        let options = parse(list);
        assert_eq!((options.squash_uid, options.squash_gid), (uid, gid), "{list}");
    }
}

#[test]
fn a_podman_list_is_understood_without_a_warning() {
    let options = parse(
        "lowerdir=/s/l/AB:/s/l/CD,upperdir=/s/x/diff,workdir=/s/x/work,uidmapping=:0:1000:1:1:100000:65536,\
         volatile,xattr_permissions=2,metacopy=on,xino=off,redirect_dir=off,nodev,fsync=0,userxattr,index=off,\
         context=\"system_u:object_r:container_file_t:s0:c1,c2\",default_permissions,allow_other,suid,noatime",
    );
    assert_eq!(options.warnings, Vec::<String>::new());
    assert_eq!(options.lowers, paths(&["/s/l/AB", "/s/l/CD"]));
    assert_eq!(options.upper.as_deref(), Some(Path::new("/s/x/diff")));
    assert_eq!(options.work.as_deref(), Some(Path::new("/s/x/work")));
    assert_eq!(options.uid_map.to_presented(1), Some(100_000));
    assert_eq!(options.gid_map, IdMap::default());
    assert!(options.volatile && options.metacopy && !options.fsync);
    assert_eq!(options.redirect_dir, RedirectDir::Off);
    assert_eq!(options.namespace, Namespace::User);
    assert_eq!(options.xattr_permissions, XattrPermissions::User);
    let mount = &options.mount;
    assert_eq!(
        (mount.dev, mount.suid, mount.atime, mount.allow_other),
        (Some(false), Some(true), Some(false), Some(true))
    );
    assert_eq!(
        mount.context.as_deref(),
        Some("context=\"system_u:object_r:container_file_t:s0:c1,c2\"")
    );
    assert_eq!(options.validate(), Ok(()));
}

#[test]
fn options_without_a_meaning_here_are_quiet_and_unknown_ones_warn() {
    let quiet = "threaded=1,writeback=0,fast_ino=0,noxattrs=0,xino=auto,plugins=,index=on,nfs_export=off,uuid=auto,\
                 verity=off,max_idle_threads=4,big_writes,splice_read,no_splice_move,clone_fd,kernel_cache,auto_cache,\
                 remount,defaults,auto,noauto,user=joe,nouser,users,_netdev,nofail,x-systemd.automount,comment=hi,\
                 relatime,async,,rw";
    let options = parse(quiet);
    let mut plain = Options::default();
    plain.mount.atime = Some(true);
    plain.mount.remount = true;
    assert_eq!(options, plain);
    assert_eq!(
        parse("lowerdir=/a,foo,bar=1,ro=1").warnings,
        [
            "unknown option 'foo' ignored",
            "unknown option 'bar' ignored",
            "unknown option 'ro' ignored"
        ]
    );
}

#[test]
fn the_last_of_repeated_options_wins() {
    let list = "noatime,timeout=1,ro,fsync=0,sync,context=a,fscontext=b,context=c,atime,timeout=0,rw,sync=1,async";
    let options = parse(list);
    assert_eq!(options.timeout, Duration::ZERO);
    assert!(options.fsync && !options.mount.read_only && !options.mount.sync);
    assert_eq!(options.mount.atime, Some(true));
    assert_eq!(options.mount.context.as_deref(), Some("context=c,fscontext=b"));
}

#[test]
fn timeouts_are_exact_decimals() {
    for (text, nanos) in [
        ("0", 0),
        ("1", 1_000_000_000),
        ("0.5", 500_000_000),
        (".5", 500_000_000),
        ("2.", 2_000_000_000),
        ("1.0000000019", 1_000_000_001),
        ("1e3", 1_000_000_000_000),
    ] {
        assert_eq!(parse(&format!("timeout={text}")).timeout.as_nanos(), nanos, "{text}");
    }
}

#[test]
fn a_whole_mount_needs_a_lower_and_work_exactly_with_upper() {
    for (list, line) in [
        ("", "option 'lowerdir': missing; expected at least one lower layer"),
        ("upperdir=/u,workdir=/w", "option 'lowerdir': missing; expected at least one lower layer"),
        ("datadir+=/d", "option 'lowerdir': missing; expected at least one lower layer"),
        (
            "lowerdir=/l,upperdir=/u",
            "option 'workdir': missing; an upperdir needs one, on its file system",
        ),
        (
            "lowerdir=/l,workdir=/w",
            "option 'workdir': given without upperdir; expected both or neither",
        ),
    ] {
        assert_eq!(parse(list).validate().unwrap_err().to_string(), line, "{list}");
    }
    assert_eq!(parse("lowerdir=/l").validate(), Ok(()));
    assert_eq!(parse("lowerdir=/l,upperdir=/u,workdir=/w,ro").validate(), Ok(()));
    let empty = Options { lowers: paths(&["/a", ""]), ..Options::default() };
    assert_eq!(
        empty.validate().unwrap_err().to_string(),
        "option 'lowerdir': empty path; expected a directory"
    );
}

#[test]
fn limits_have_binary_suffixes_and_need_somewhere_to_write() {
    for (text, limit) in [
        ("4096", Some(4096)),
        ("64k", Some(64 << 10)),
        ("10M", Some(10 << 20)),
        ("2g", Some(2 << 30)),
        ("1T", Some(1 << 40)),
        ("0", None),
        ("0k", None),
    ] {
        assert_eq!(parse(&format!("size={text}")).size, limit, "{text}");
        assert_eq!(parse(&format!("nr_inodes={text}")).nr_inodes, limit, "{text}");
    }
    for text in ["", "k", "-1", "+1", "1x", "1.5g", "50%", "99999999999999999999", "99999999999t"] {
        let error = Options::parse(format!("size={text}")).unwrap_err();
        assert!(error.to_string().contains("with k, m, g or t"), "{error}");
    }
    let both = "lowerdir=/l,upperdir=/u,workdir=/w,size=1m,nr_inodes=1k";
    assert_eq!(parse(both).validate(), Ok(()));
    assert!(parse(both).to_string().ends_with(",size=1048576,nr_inodes=1024"));
    let line = |list: &str| parse(list).validate().unwrap_err().to_string();
    assert!(line("lowerdir=/l,nr_inodes=5").starts_with("option 'nr_inodes': limits what"));
    let passed = line(&format!("{both},io=passthrough"));
    assert!(passed.starts_with("option 'io': passthrough goes past the limit of size"), "{passed}");
}

#[test]
fn paths_keep_bytes_that_are_not_text() {
    let options = Options::parse(OsStr::from_bytes(b"lowerdir=/\xff\\:\xfe:/b")).unwrap();
    assert_eq!(options.lowers, [Path::new(OsStr::from_bytes(b"/\xff:\xfe")), Path::new("/b")]);
    assert_eq!(options.to_list().as_bytes(), b"lowerdir=/\xff\\:\xfe:/b");
    assert!(Options::parse(OsStr::from_bytes(b"fsname=\xff")).is_err());
}

/// Xorshift: repeatable, and good enough to pick cases.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    fn number(&mut self) -> u32 {
        u32::try_from(self.below(1 << 31)).unwrap()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.flip() { Some(make(self)) } else { None }
    }

    fn bytes(&mut self, alphabet: &[u8]) -> Vec<u8> {
        let length = 1 + self.below(8);
        (0..length)
            .map(|_| alphabet[usize::try_from(self.below(alphabet.len() as u64)).unwrap()])
            .collect()
    }

    fn path(&mut self) -> PathBuf {
        let mut path = self.bytes(b"ab/\\,:\"= \xff\n");
        if path.starts_with(b"//") {
            path[0] = b'.';
        }
        PathBuf::from(OsString::from_vec(path))
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.bytes(b"ab\\,:\"= ")).unwrap()
    }

    fn map(&mut self) -> IdMap {
        let (mut on_disk, mut presented) = (0, 0);
        let mut ranges = Vec::new();
        for _ in 0..self.below(4) {
            on_disk += self.number() >> 8;
            presented += self.number() >> 8;
            let length = (self.number() >> 8) + 1;
            ranges.push(IdRange { on_disk, presented, length });
            on_disk += length;
            presented += length;
        }
        IdMap::new(ranges).unwrap()
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

fn random_options(random: &mut Random) -> Options {
    let lowers = 1 + random.below(3);
    let data = random.below(3);
    let mut options = Options {
        lowers: (0..lowers).map(|_| random.path()).collect(),
        data_lowers: (0..data).map(|_| random.path()).collect(),
        upper: random.maybe(Random::path),
        work: random.maybe(Random::path),
        namespace: random.pick(&[Namespace::Auto, Namespace::Trusted, Namespace::User]),
        redirect_dir: random.pick(&[
            RedirectDir::Auto,
            RedirectDir::On,
            RedirectDir::Off,
            RedirectDir::Copy,
        ]),
        metacopy: random.flip(),
        volatile: random.flip(),
        fsync: random.flip(),
        whiteouts: random.pick(&[
            Whiteouts::Auto,
            Whiteouts::Device,
            Whiteouts::Dot,
            Whiteouts::Xattr,
        ]),
        uid_map: random.map(),
        gid_map: random.map(),
        lower_uid_map: random.map(),
        lower_gid_map: random.map(),
        squash_uid: random.maybe(Random::number),
        squash_gid: random.maybe(Random::number),
        squash_unmapped: random.maybe(Random::number),
        xattr_permissions: random.pick(&[
            XattrPermissions::Off,
            XattrPermissions::Security,
            XattrPermissions::User,
        ]),
        static_nlink: random.flip(),
        noacl: random.flip(),
        ino32: random.flip(),
        noxattrs: random.flip(),
        nfs_export: random.flip(),
        io: random.pick(&[Io::Auto, Io::Handles, Io::Handleless, Io::Passthrough]),
        transport: random.pick(&[Transport::Auto, Transport::Ring, Transport::Classic]),
        size: random.maybe(|random| u64::from(random.number()) + 1),
        nr_inodes: random.maybe(|random| u64::from(random.number()) + 1),
        ..Options::default()
    };
    if random.flip() {
        options.timeout = Duration::new(random.below(100), random.number() % 1_000_000_000);
    }
    random_mount(random, &mut options.mount);
    options
}

fn random_mount(random: &mut Random, mount: &mut MountFlags) {
    mount.fsname = random.maybe(Random::text);
    mount.subtype = random.maybe(Random::text);
    for flag in [
        &mut mount.suid,
        &mut mount.dev,
        &mut mount.exec,
        &mut mount.atime,
        &mut mount.diratime,
        &mut mount.allow_other,
    ] {
        *flag = random.maybe(Random::flip);
    }
    for flag in [
        &mut mount.read_only,
        &mut mount.sync,
        &mut mount.dirsync,
        &mut mount.allow_root,
        &mut mount.debug,
    ] {
        *flag = random.flip();
    }
    mount.max_write = random.maybe(Random::number);
    mount.max_read = random.maybe(Random::number);
    mount.context = random.maybe(|random| {
        random.pick(&["context=\"a:c1,c2\"", "context=x,rootcontext=\"y\""]).to_owned()
    });
}

#[test]
fn the_canonical_list_reads_back_as_the_same_options() {
    for seed in 1..20_000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let options = random_options(&mut random);
        let list = options.to_list();
        let again =
            Options::parse(&list).unwrap_or_else(|error| panic!("seed {seed}: {list:?}: {error}"));
        assert_eq!(again, options, "seed {seed}: {list:?}");
    }
    assert_eq!(Options::default().to_string(), "");
}

#[test]
fn any_bytes_parse_or_fail_without_a_panic() {
    let mut random = Random(42);
    for _ in 0..20_000 {
        let mut list = b"lowerdir=".to_vec();
        list.extend(random.bytes(b"a:\\\",=/\xff"));
        list.push(b',');
        list.extend(random.bytes(b"a:\\\",=/\xff"));
        if let Ok(options) = Options::parse(OsStr::from_bytes(&list)) {
            let again = Options::parse(options.to_list()).unwrap();
            assert_eq!(again.to_list(), options.to_list());
        }
    }
}

#[test]
fn a_program_of_an_owner_whom_the_lower_map_does_not_name_runs_as_nobody_else() {
    let options = Options::parse("lowerdir=/a,lower_uidmapping=0:100000:65535").unwrap();
    let regular = |mode| crate::sys::S_IFREG | mode;
    let nobody = crate::owner::OVERFLOW_ID;
    assert_eq!(options.mode_of_lower(nobody, nobody, regular(0o6755)), regular(0o2755));
    assert_eq!(options.mode_of_lower(100_000, nobody, regular(0o6755)), regular(0o6755));
    let dir = crate::sys::S_IFDIR | 0o2755;
    assert_eq!(options.mode_of_lower(nobody, nobody, dir), dir);
    let plain = Options::parse("lowerdir=/a").unwrap();
    assert_eq!(plain.mode_of_lower(nobody, nobody, regular(0o6755)), regular(0o6755));
}
