"""The load of scripts/soak: random operations with a record of what must be there, races, and builds.

A recorded worker does each operation twice, on the mount and on a plain directory beside it that began as the same
tree: both must answer alike, and at the end both must be equal. Workers that race have no record: there an operation
may find that another one was first, but nothing else may go wrong.
"""

import errno
import hashlib
import mmap
import os
import pathlib
import random
import stat
import subprocess
import time

HELD = 6  # files that a worker keeps open
LARGEST = 200_000
LOST_RACE = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EPERM, errno.ENODATA}


class Difference(Exception):
    """The mount and the plain directory do not answer alike."""


def blob(seed, size):
    return random.Random(seed).randbytes(size)


def opened(path, flags, work):
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        return work(fd)
    finally:
        os.close(fd)


def write_at(fd, offset, seed, size):
    return os.pwrite(fd, blob(seed, size), offset)


def through_mapping(fd, seed):
    """Changes a file through a shared mapping."""
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    with mmap.mmap(fd, size) as view:
        at = seed % size
        piece = blob(seed, min(5000, size - at))
        view[at : at + len(piece)] = piece
        return hashlib.sha256(view[:]).hexdigest()


def content(fd):
    size = os.fstat(fd).st_size
    data = os.pread(fd, size + 1, 0)
    return len(data), hashlib.sha256(data).hexdigest()


def shown(info):
    """What both sides have in common: no times, which are never quite the same, and no links of directories."""
    links = 0 if stat.S_ISDIR(info.st_mode) else info.st_nlink
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    return info.st_mode, info.st_uid, info.st_gid, size, links


def listing(path):
    """Names and types; and the numbers in a listing are those that stat tells."""
    with os.scandir(path) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False), entry.inode(), entry.path) for entry in entries]
    for name, _, number, at in found:
        if os.lstat(at).st_ino != number:
            raise Difference(f"{at}: listed as inode {number}, {os.lstat(at).st_ino} by stat")
    return sorted((name, is_dir) for name, is_dir, _, _ in found)


def copy_range(path, other):
    def work(source):
        return opened(other, os.O_WRONLY, lambda to: os.copy_file_range(source, to, 50_000, 100, 7))

    return opened(path, os.O_RDONLY, work)


OPERATIONS = {
    "write": (12, lambda p, q, n: opened(p, os.O_RDWR | os.O_CREAT, lambda fd: write_at(fd, n % LARGEST, n, n % 9000))),
    "append": (6, lambda p, q, n: opened(p, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, blob(n, n % 700)))),
    "replace": (5, lambda p, q, n: opened(p, os.O_RDWR | os.O_CREAT | os.O_TRUNC, lambda fd: os.write(fd, blob(n, n % 5000)))),
    "create": (5, lambda p, q, n: opened(p, os.O_RDWR | os.O_CREAT | os.O_EXCL, lambda fd: os.write(fd, blob(n, n % 3000)))),
    "read": (10, lambda p, q, n: opened(p, os.O_RDONLY, content)),
    "map": (5, lambda p, q, n: opened(p, os.O_RDWR, lambda fd: through_mapping(fd, n))),
    "fsync": (1, lambda p, q, n: opened(p, os.O_RDWR, os.fsync)),
    "allocate": (1, lambda p, q, n: opened(p, os.O_RDWR, lambda fd: os.posix_fallocate(fd, n % LARGEST, 4096))),
    "copy": (2, lambda p, q, n: copy_range(p, q)),
    "truncate": (5, lambda p, q, n: os.truncate(p, n % LARGEST)),
    "mkdir": (6, lambda p, q, n: os.mkdir(p)),
    "rmdir": (4, lambda p, q, n: os.rmdir(p)),
    "unlink": (7, lambda p, q, n: os.unlink(p)),
    "rename": (10, lambda p, q, n: os.rename(p, q)),
    "link": (4, lambda p, q, n: os.link(p, q, follow_symlinks=False)),
    "symlink": (3, lambda p, q, n: os.symlink(f"d{n % 3}/f{n % 5}", p)),
    "readlink": (2, lambda p, q, n: os.readlink(p)),
    "chmod": (5, lambda p, q, n: os.chmod(p, 0o600 | n % 0o200)),
    "chown": (2, lambda p, q, n: os.chown(p, n % 3, n % 5, follow_symlinks=False)),
    "times": (3, lambda p, q, n: os.utime(p, (n % 10**9, n % 10**9), follow_symlinks=False)),
    "setxattr": (4, lambda p, q, n: os.setxattr(p, f"user.a{n % 4}", blob(n, n % 200), follow_symlinks=False)),
    "getxattr": (2, lambda p, q, n: os.getxattr(p, f"user.a{n % 4}", follow_symlinks=False)),
    "removexattr": (2, lambda p, q, n: os.removexattr(p, f"user.a{n % 4}", follow_symlinks=False)),
    "listxattr": (2, lambda p, q, n: sorted(name for name in os.listxattr(p, follow_symlinks=False) if name.startswith("user."))),
    "stat": (10, lambda p, q, n: shown(os.lstat(p))),
    "list": (6, lambda p, q, n: listing(p)),
}

# On a descriptor, which may have lost its name since.
HELD_OPERATIONS = {
    "write": lambda fd, n: write_at(fd, n % LARGEST, n, n % 3000),
    "read": lambda fd, n: content(fd),
    "truncate": lambda fd, n: os.ftruncate(fd, n % LARGEST),
    "map": through_mapping,
    "chmod": lambda fd, n: os.fchmod(fd, 0o600 | n % 0o200),
    "stat": lambda fd, n: shown(os.fstat(fd)),
}


def outcome(work, *words):
    try:
        return work(*words)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def pick_path(random_, depth=3):
    """Few names, so that they meet: directories d0-d3, files f0-f9."""
    parts = [f"d{random_.randrange(4)}" for _ in range(random_.randrange(depth))]
    return "/".join(parts + [random_.choice([f"f{random_.randrange(10)}"] * 4 + [f"d{random_.randrange(4)}"])])


class Recorded:
    """One worker with a record: `here` is its directory on the mount, `there` the plain one."""

    def __init__(self, here, there, seed):
        self.here, self.there = here, there
        self.random = random.Random(seed)
        self.held = []
        self.names, self.weights = list(OPERATIONS), [weight for weight, _ in OPERATIONS.values()]

    def alike(self, what, one, two):
        if one != two:
            raise Difference(f"{what}: {str(one)[:200]} on the mount, {str(two)[:200]} on the plain directory")

    def step(self):
        chance = self.random.random()
        if chance < 0.05:
            self.hold()
        elif chance < 0.15 and self.held:
            self.use_held()
        else:
            name = self.random.choices(self.names, self.weights)[0]
            path, other, number = pick_path(self.random), pick_path(self.random), self.random.getrandbits(30)
            work = OPERATIONS[name][1]
            answers = [outcome(work, os.path.join(root, path), os.path.join(root, other), number) for root in (self.here, self.there)]
            self.alike(f"{name} {self.here}/{path} {other} {number}", *answers)

    def hold(self):
        if len(self.held) == HELD:
            for fd in self.held.pop(self.random.randrange(HELD))[1:]:
                os.close(fd)
        path = pick_path(self.random)
        fds = [outcome(os.open, os.path.join(root, path), os.O_RDWR | os.O_NOFOLLOW) for root in (self.here, self.there)]
        if all(isinstance(fd, int) for fd in fds):
            self.held.append((path, *fds))
        else:
            self.alike(f"open {path}", *fds)

    def use_held(self):
        path, *fds = self.random.choice(self.held)
        name, number = self.random.choice(list(HELD_OPERATIONS)), self.random.getrandbits(30)
        self.alike(f"{name} of the open {self.here}/{path} {number}", *[outcome(HELD_OPERATIONS[name], fd, number) for fd in fds])

    def close(self):
        for _, *fds in self.held:
            for fd in fds:
                os.close(fd)


def recorded(here, there, seed, end):
    """Runs to the time `end`; returns how many operations were done."""
    worker, done = Recorded(here, there, seed), 0
    while time.monotonic() < end:
        worker.step()
        done += 1
    worker.close()
    return done


def racing(here, _, seed, end):
    """The same operations by several workers in one directory."""
    random_, done = random.Random(seed), 0
    # A mapping of a file that another worker shortens would be a signal, not an error.
    names = [name for name in OPERATIONS if name != "map"]
    weights = [OPERATIONS[name][0] for name in names]
    while time.monotonic() < end:
        name = random_.choices(names, weights)[0]
        path, other = (os.path.join(here, pick_path(random_, 2)) for _ in range(2))
        number = random_.getrandbits(30)
        try:
            OPERATIONS[name][1](path, other, number)
        except OSError as error:
            if error.errno not in LOST_RACE:
                raise Difference(f"{name} {path} {other} {number}: {error}") from error
        except Difference:
            pass  # a name that was replaced between the listing and stat
        done += 1
    return done


UNITS = 12


def write_project(path):
    """Sources whose program prints a number that shows whether all of them were compiled and linked."""
    path.mkdir(parents=True)
    for n in range(UNITS):
        (path / f"u{n}.c").write_text(f'#include "all.h"\n#include <stdio.h>\n#include <stdlib.h>\nint u{n}(void) {{ return VALUE + {n}; }}\n')
    calls = " + ".join(f"u{n}()" for n in range(UNITS))
    header = "".join(f"int u{n}(void);\n" for n in range(UNITS))
    (path / "all.h").write_text(f"#define VALUE 1\n{header}")
    (path / "main.c").write_text(f'#include "all.h"\n#include <stdio.h>\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n')
    (path / "Makefile").write_text(
        "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\nprog: $(OBJECTS)\n\tgcc -o $@ $^\n%.o: %.c all.h\n\tgcc -O1 -c -o $@ $<\nclean:\n\trm -f *.o prog\n"
    )


def building(here, _, seed, end):
    """make -j2 from nothing, after a change of the header, and again; the program must tell what was written."""
    done, value, path = 0, seed % 1_000_000, pathlib.Path(here)
    while time.monotonic() < end:
        value += 1
        header = (path / "all.h").read_text().split("\n", 1)[1]
        (path / "all.h.new").write_text(f"#define VALUE {value}\n{header}")
        os.rename(path / "all.h.new", path / "all.h")
        targets = ["clean", "prog"] if value % 3 == 0 else ["prog"]
        for target in targets:
            made = subprocess.run(["make", "-s", "-j2", target], cwd=here, capture_output=True, text=True, timeout=300)
            if made.returncode != 0:
                raise Difference(f"make {target} in {here}: {made.stdout[-300:]} {made.stderr[-300:]}")
        told = subprocess.run([f"{here}/prog"], capture_output=True, text=True, timeout=60).stdout.strip()
        wanted = str(UNITS * value + sum(range(UNITS)))
        if told != wanted:
            raise Difference(f"{here}/prog: tells {told}, not {wanted}")
        done += 1
    return done
