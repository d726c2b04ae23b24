#!/usr/bin/env python3
"""Random trees and random work on them, the same for the same seed.

    randtree.py make SEED DIR LINKS          fills DIR
    randtree.py work SEED N DIR LOG LINKS    does N random steps in DIR and logs each with its outcome
    randtree.py replay LOG DIR               repeats the steps that succeeded

Names come from a small alphabet, so that removing and making again, opaque directories and renames
over each other happen often. Every explicit time is before 2001, so that comparisons can tell them
from the time of the work. LINKS says which hard links are made: `none`, `some` or `all`. Below `hl`
are links from the start; only with `all` does anything but removal touch them, since an overlay
without an index may part the links of a lower. Everything happens in a chroot of DIR, since it runs
as root and the links that it makes and follows lead anywhere; it needs the right to chroot.
"""

import ctypes
import errno
import json
import os
import random
import stat
import struct
import sys

NAMES = ["a", "b", "c", "d", "e", "f", "with space", "\u00e4\u20ac", ".dot", "x" * 200, "\udcff\udcfe"]
NOREPLACE, EXCHANGE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old, new, flags):
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def acl(rng):
    """A POSIX ACL: user 1 has its own entry."""
    entries = [(1, 6, 0xFFFFFFFF), (2, rng.randrange(8), 1), (4, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def content(seed, size):
    return random.Random(seed).randbytes(size)


# The steps take plain values, so that a log can repeat them.
def write(path, offset, seed, size):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        os.pwrite(file, content(seed, size), offset)
    finally:
        os.close(file)


def truncate(path, size):
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.ftruncate(file, size)
    finally:
        os.close(file)


def setxattr(path, name, value):
    os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)


STEPS = {
    "write": write,
    "truncate": truncate,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
    "rename": lambda old, new, flags: renameat2(old, new, flags),
    "symlink": lambda path, target: os.symlink(target, path),
    "link": lambda path, old: os.link(old, path, follow_symlinks=False),
    "chmod": os.chmod,
    "chown": lambda path, uid, gid: os.lchown(path, uid, gid),
    "setxattr": setxattr,
    "removexattr": lambda path, name: os.removexattr(path, name, follow_symlinks=False),
    "utime": lambda path, when: os.utime(path, ns=(when, when), follow_symlinks=False),
    "mkfifo": os.mkfifo,
    "mknod": lambda path, mode, device: os.mknod(path, mode, device),
}
TWO_PATHS = {"rename", "link"}


def step(name, args):
    """Performs one step in the current directory; the name of the error, or None."""
    try:
        STEPS[name](*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return None


class Work:
    """Chooses steps from what the tree shows."""

    def __init__(self, seed, links, log=None):
        self.rng = random.Random(seed)
        self.links = links
        self.log = log
        self.removed = []

    def do(self, name, *args):
        outcome = step(name, args)
        if self.log is not None:
            print(json.dumps([name, args, outcome]), file=self.log)
        return outcome

    def look(self):
        """The files and directories that may be changed."""
        files, dirs = [], ["."]
        for path, subdirs, names in os.walk("."):
            subdirs.sort()
            if path == "." and "hl" in subdirs and self.links != "all":
                subdirs.remove("hl")
            dirs += [os.path.join(path, name) for name in subdirs if not os.path.islink(os.path.join(path, name))]
            links = [name for name in subdirs if os.path.islink(os.path.join(path, name))]
            files += [os.path.join(path, name) for name in sorted(names + links)]
        return files, dirs

    def new(self, dirs):
        """A path to make: often one that was removed before."""
        if self.removed and self.rng.random() < 0.4:
            return self.rng.choice(self.removed)
        return os.path.join(self.rng.choice(dirs), self.rng.choice(NAMES))

    def remove_tree(self, path):
        for base, subdirs, names in os.walk(path, topdown=False):
            for name in sorted(names) + sorted(subdirs):
                full = os.path.join(base, name)
                is_dir = stat.S_ISDIR(os.lstat(full).st_mode)
                self.do("rmdir" if is_dir else "unlink", full)
        self.do("rmdir", path)
        self.removed.append(path)

    def one(self):
        files, dirs = self.look()
        rng, some = self.rng, self.rng.choice(files or ["none"])
        plain = [path for path in files if not os.path.islink(path) and os.path.isfile(path)]
        any_path = rng.choice(files + dirs[1:] or ["none"])
        choice = rng.random()
        if choice < 0.20:
            self.do("write", self.new(dirs), 0, rng.getrandbits(32), rng.randrange(20000))
        elif choice < 0.30 and plain:
            self.do("write", rng.choice(plain), rng.randrange(3000), rng.getrandbits(32), rng.randrange(9000))
        elif choice < 0.34 and plain:
            self.do("truncate", rng.choice(plain), rng.randrange(30000))
        elif choice < 0.40:
            self.do("unlink", some)
            self.removed.append(some)
        elif choice < 0.43 and len(dirs) > 1:
            self.remove_tree(max(rng.sample(dirs[1:], min(3, len(dirs) - 1)), key=lambda path: path.count("/")))
        elif choice < 0.44 and os.path.isdir("hl") and rng.random() < 0.3:
            self.remove_tree("hl")
        elif choice < 0.57:
            self.do("mkdir", self.new(dirs), 0o755)
        elif choice < 0.66:
            self.do("rename", any_path, self.new(dirs), rng.choice([0, 0, 0, NOREPLACE]))
            self.removed.append(any_path)
        elif choice < 0.70:
            self.do("rename", any_path, rng.choice(files + dirs[1:] or ["none"]), rng.choice([0, EXCHANGE]))
        else:
            self.metadata(any_path, some, dirs)

    def metadata(self, path, file, dirs):
        rng, kind = self.rng, self.rng.randrange(9)
        link = os.path.islink(path)
        if kind == 0:
            self.do("symlink", self.new(dirs), rng.choice(["a", "../b", "/a/b", "nowhere", "y" * 300]))
        elif kind == 1 and self.links != "none":
            self.do("link", self.new(dirs), file)
        elif kind == 2 and not link:
            self.do("chmod", path, rng.choice([0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o700]))
        elif kind == 3:
            self.do("chown", path, rng.randrange(3000), rng.randrange(3000))
        elif kind in (4, 5) and not link:
            self.do("setxattr", path, rng.choice(["user.one", "user.two"]), rng.randbytes(rng.randrange(40)).hex())
        elif kind == 6 and not link:
            self.do("setxattr", path, "system.posix_acl_access", acl(rng).hex())
        elif kind == 7:
            self.do("utime", path, rng.randrange(-(10**18), 978 * 10**15))
        elif kind == 8 and rng.random() < 0.5:
            self.do("mkfifo", self.new(dirs), 0o640)
        elif kind == 8:
            self.do("mknod", self.new(dirs), stat.S_IFCHR | 0o600, os.makedev(1, 3))
        elif not link:
            self.do("removexattr", path, "user.one")


def make(seed, links):
    """A starting tree: a few levels, some of everything."""
    work = Work(seed, links)
    os.mkdir("hl")
    work.do("write", "hl/one", 0, seed, 5000)
    work.do("link", "hl/two", "hl/one")
    work.do("link", "hl/three", "hl/one")
    for name in NAMES[:5]:
        os.mkdir(name)
        for inner in NAMES[2:8]:
            work.do(*work.rng.choice([("mkdir", f"{name}/{inner}", 0o755), ("write", f"{name}/{inner}", 0, work.rng.getrandbits(32), 3000)]))
    for _ in range(150):
        work.one()
    for base, subdirs, names in os.walk(".", topdown=False):
        for name in sorted(names + subdirs):
            os.utime(os.path.join(base, name), ns=(work.rng.randrange(978 * 10**15),) * 2, follow_symlinks=False)
    os.utime(".", ns=(10**17, 10**17))


def replay(log):
    """The first step that does not do what it did when logged, if any."""
    for number, line in enumerate(log, 1):
        name, args, outcome = json.loads(line)
        if outcome is None and (now := step(name, args)) is not None:
            print(f"step {number}: {name} {args}: succeeded on the overlay, {now} on a plain tree")
            return 1
    return 0


def enter(place):
    """Nothing outside DIR can be reached from here on."""
    os.chdir(place)
    os.chroot(".")


def main():
    os.umask(0o022)
    match sys.argv[1:]:
        case ["make", seed, place, links]:
            enter(place)
            make(int(seed), links)
        case ["work", seed, count, place, log, links]:
            with open(log, "w", encoding="ascii") as file:
                enter(place)
                work = Work(int(seed), links, file)
                for _ in range(int(count)):
                    work.one()
        case ["replay", log, place]:
            with open(log, encoding="ascii") as file:
                enter(place)
                return replay(file)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
