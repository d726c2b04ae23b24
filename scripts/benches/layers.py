"""The rows of layers of scripts/bench: filling a layer from an archive, reading one back as an archive and removing one, beside
GNU tar on the same filesystem; see there.

A layer that is filled is on disk when `layer apply` returns; what tar unpacks is not. So the ratio is to tar and `sync -f` of the
same filesystem, and the time of tar alone stands beside it. Before each measurement everything is on disk, and archives and trees
are in the page cache for all. tar keeps what plyfs keeps: owners by number, modes, extended attributes. Prints one JSON object a
measurement.
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import mounts  # noqa: E402
import prepare  # noqa: E402

PATIENCE = 300  # seconds that a command may take
TAR = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
EMPTY = bytes(512)


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    subjects: tuple = ("plyfs",)
    against: str = ""  # the subject of the ratio
    goal: float = 0
    most: float = 0  # the goal of a row without a ratio
    unit: str = "s"
    last: bool = False  # after all rounds: it deletes, or needs no median
    quick: bool = True


def both(name, what, goal=0, **more):
    return Row(name, what, ("plyfs", "tar", "tar+sync"), "tar+sync", goal, **more)


def read(name, what, goal=0):
    return Row(name, what, ("plyfs", "tar"), "tar", goal)


def memory(name, what, **more):
    return Row(name, f"memory of {what}", most=64, unit="MiB", last=True, **more)


ROWS = [
    both("layer-apply", "layer apply", 1.1),
    both("layer-apply-gzip", "layer apply, gzip", quick=False),
    both("layer-apply-zstd", "layer apply, zstd", quick=False),
    read("layer-diff", "layer diff of a written layer", 1.1),
    read("layer-diff-filled", "layer diff of a filled layer", 1.1),
    Row("layer-diff-naive", "layer diff by comparing (vfs)"),
    Row("layer-rm", "layer rm", most=50, unit="ms", last=True),
    memory("layer-memory-apply", "layer apply"),
    memory("layer-memory-apply-hole", "layer apply, 4 GiB with holes"),
    memory("layer-memory-apply-many", "layer apply, {many} empty files"),
    memory("layer-memory-diff", "layer diff"),
    memory("layer-memory-diff-hole", "layer diff, 4 GiB with holes"),
    memory("layer-memory-diff-many", "layer diff, {many} empty files"),
    memory("layer-memory-naive-many", "layer diff (vfs), {some} empty files"),
]


@dataclass(frozen=True)
class Scale:
    """How large the layers are."""

    files: int = 20000
    mib: int = 500
    many: int = 200000
    some: int = 50000  # there are only so many inodes


QUICK = Scale(files=2000, mib=50, many=20000, some=20000)


def write_tree(path, scale):
    """Most files are small and a few are large, as in images; some are symlinks, have two names, attributes or another owner."""
    pick = random.Random(2)
    noise = pick.randbytes(1 << 20)
    weights = [pick.paretovariate(1.3) for _ in range(scale.files)]
    each = (scale.mib << 20) / sum(min(weight, 200) for weight in weights)
    for number, weight in enumerate(weights):
        place = path / f"usr/share/part{number // 1000:02}/dir{number // 50:04}"
        if number % 50 == 0:
            place.mkdir(parents=True)
        name, left = place / f"file{number:05}.dat", int(min(weight, 200) * each)
        with open(name, "wb") as file:
            while left > 0:
                # Half of it can be compressed.
                at, length = pick.randrange(len(noise) // 2), min(left, 64 << 10)
                file.write((noise[at : at + length // 2] + bytes(length))[:length])
                left -= length
        if number % 40 == 0:
            os.symlink(name.name, place / f"link{number:05}")
        elif number % 100 == 1:
            os.link(name, place / f"twin{number:05}")
        elif number % 100 == 2:
            os.setxattr(name, "user.plyfs.bench", b"value")
        if number % 10 == 3:
            os.chown(name, 1000, 1000)
        if number % 7 == 0:
            os.chmod(name, 0o755)
        os.utime(name, (prepare.LONG_AGO, prepare.LONG_AGO))


def write_many(path, count):
    """An archive of empty files in one directory."""
    with open(path, "wb") as out:
        for number in range(count):
            block = bytearray(EMPTY)
            block[0:11] = b"many/%06d" % number
            block[100:148] = b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2
            block[156:157] = b"0"
            block[257:265] = b"ustar\00000"
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            out.write(block)
        out.write(EMPTY * 2)


class Bench:
    def __init__(self, base, scale):
        self.base, self.scale, self.count = pathlib.Path(base), scale, 0
        self.sources, self.run, self.store = self.base / "sources", self.base / "run", self.base / "store"
        for path in (self.sources, self.run):
            path.mkdir(parents=True)
        self.filled, self.made = [], {}

    def source(self, name):
        """The path of something that is made when it is first needed."""
        path = self.sources / name
        if name not in self.made:
            self.made[name] = path
            getattr(self, "make_" + re.sub("[.-]", "_", name))(path)
            prepare.shell("sync", "-f", self.base)
        return path

    def make_tree(self, path):
        write_tree(path, self.scale)

    def make_tree_tar(self, path):
        # Times are whole seconds, and the names of attributes in the extended headers, as in layers of images.
        words = ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--sort=name"]
        prepare.shell(*TAR, *words, "-cf", path, "-C", self.source("tree"), ".")

    def make_tree_tar_gz(self, path):
        prepare.shell("sh", "-c", f"gzip -1 <{self.source('tree.tar')} >{path}")

    def make_tree_tar_zst(self, path):
        prepare.shell("zstd", "-q", "-3", self.source("tree.tar"), "-o", path)

    def make_hole(self, path):
        path.mkdir()
        with open(path / "hole", "wb") as file:
            for at in (0, 1 << 30, (4 << 30) - 4096):
                file.seek(at)
                file.write(b"x" * 4096)

    def make_hole_tar(self, path):
        prepare.shell(*TAR, "--format=posix", "-S", "-cf", path, "-C", self.source("hole"), ".")

    def make_many_tar(self, path):
        write_many(path, self.scale.many)

    def make_some_tar(self, path):
        write_many(path, self.scale.some)

    def make_written(self, _):
        self.write("written", self.source("tree"))

    def make_written_hole(self, _):
        self.write("written-hole", self.source("hole"))

    def make_written_many(self, _):
        prepare.shell(*TAR, "-xf", self.source("many.tar"), "-C", self.upper("written-many"))

    def make_copied(self, _):
        """Whole copies, of which one in a hundred files was changed since."""
        vfs = ["--driver", "vfs"]
        self.call("layer", "create", "--read-only", "copied-base", more=vfs)
        self.call("layer", "apply", "copied-base", str(self.source("tree.tar")), more=vfs)
        self.call("layer", "create", "--parent", "copied-base", "copied", more=vfs)
        place = pathlib.Path(self.call("layer", "mount", "copied", more=vfs).strip())
        for path in sorted(place.glob("usr/share/*/*/file*00.dat")):
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    def make_copied_many(self, _):
        vfs = ["--driver", "vfs"]
        self.call("layer", "create", "copied-many-base", more=vfs)
        place = self.call("layer", "mount", "copied-many-base", more=vfs).strip()
        prepare.shell(*TAR, "-xf", self.source("some.tar"), "-C", place)
        self.call("layer", "umount", "copied-many-base", more=vfs)
        self.call("layer", "create", "--parent", "copied-many-base", "copied-many", more=vfs)

    def plyfs(self, *words, more=()):
        """A store for whole copies, one for the driver that this host gets."""
        root = self.base / ("copies" if more else "store")
        return [os.environ["PLYFS"], "--root", str(root), *more, *words]

    def call(self, *words, more=()):
        return prepare.shell(*self.plyfs(*words, more=more))

    def upper(self, name):
        self.call("layer", "create", name)
        return json.loads(self.call("layer", "inspect", name))["metadata"]["UpperDir"]

    def write(self, name, tree):
        prepare.shell("cp", "-a", "--sparse=always", f"{tree}/.", self.upper(name))

    def fresh(self):
        self.count += 1
        return f"layer{self.count}"

    def timed(self, words, to=None):
        """Seconds that a command takes once all that was written before is on disk."""
        prepare.shell("sync", "-f", self.base)
        with open(to or os.devnull, "wb") as out:
            start = time.perf_counter()
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
            wall = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]}: {done.stderr.decode(errors='replace')[:300] or done.returncode}")
        return wall

    def peak(self, *words, more=()):
        """MiB that plyfs had in memory at most."""
        said = self.base / "peak"
        self.timed(["/usr/bin/time", "-f", "%M", "-o", str(said), *self.plyfs(*words, more=more)])
        return int(said.read_text().split()[-1]) / 1024

    def apply(self, archive, subject):
        archive = str(self.source(archive))
        if subject == "plyfs":
            name = self.fresh()
            self.call("layer", "create", "--read-only", name)
            wall = self.timed(self.plyfs("layer", "apply", name, archive))
            self.filled.append(name)
            return wall
        place = self.run / self.fresh()
        place.mkdir()
        words = [*TAR, "-p", "-xf", archive, "-C", str(place)]
        if subject == "tar+sync":
            words = ["sh", "-c", '"$@" && exec sync -f "$0"', str(place), *words]
        wall = self.timed(words)
        prepare.shell("sync", "-f", self.base)
        mounts.discard(place)
        return wall

    def diff(self, layer, subject, more=()):
        """An archive of a layer, in a file of the same filesystem."""
        out = self.run / self.fresh()
        if subject == "plyfs":
            words = self.plyfs("layer", "diff", layer, more=more)
        else:
            upper = json.loads(self.call("layer", "inspect", layer))["metadata"]["UpperDir"]
            words = [*TAR, "--format=posix", "-c", "-C", upper, "."]
        wall = self.timed(words, to=out)
        out.unlink()
        return wall

    def remove(self):
        """Milliseconds. Layers are removed one right after the other."""
        self.a_filled_layer()
        return 1000 * self.timed(self.plyfs("layer", "rm", self.filled.pop()))

    def a_filled_layer(self):
        if not self.filled:
            self.apply("tree.tar", "plyfs")
        return self.filled[0]

    def peak_of_apply(self, archive):
        self.call("layer", "create", "--read-only", name := self.fresh())
        return self.peak("layer", "apply", name, str(self.source(archive)))

    def peak_of_diff(self, layer, more=()):
        self.source(layer)
        return self.peak("layer", "diff", layer, more=more)

    def measure(self, row, subject):
        """Seconds, or what the row has in their place."""
        vfs = ["--driver", "vfs"]
        doings = {
            "layer-apply": lambda: self.apply("tree.tar", subject),
            "layer-apply-gzip": lambda: self.apply("tree.tar.gz", subject),
            "layer-apply-zstd": lambda: self.apply("tree.tar.zst", subject),
            "layer-diff": lambda: self.diff(self.source("written").name, subject),
            "layer-diff-filled": lambda: self.diff(self.a_filled_layer(), subject),
            "layer-diff-naive": lambda: self.diff(self.source("copied").name, subject, vfs),
            "layer-rm": self.remove,
            "layer-memory-apply": lambda: self.peak_of_apply("tree.tar"),
            "layer-memory-apply-hole": lambda: self.peak_of_apply("hole.tar"),
            "layer-memory-apply-many": lambda: self.peak_of_apply("many.tar"),
            "layer-memory-diff": lambda: self.peak_of_diff("written"),
            "layer-memory-diff-hole": lambda: self.peak_of_diff("written-hole"),
            "layer-memory-diff-many": lambda: self.peak_of_diff("written-many"),
            "layer-memory-naive-many": lambda: self.peak_of_diff("copied-many", vfs),
        }
        return doings[row.name]()

    def report(self, row, subject):
        try:
            value = self.measure(row, subject)
            found = {"wall" if row.unit == "s" else "value": value}
        except (RuntimeError, ValueError, OSError, LookupError, subprocess.SubprocessError) as error:
            found = {"error": str(error)}
        print(json.dumps({"mode": os.environ["PLYFS_MODE"], "layers": row.name, "subject": subject} | found), flush=True)


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("--base", required=True)
    parse.add_argument("--repeat", type=int, required=True)
    parse.add_argument("--quick", action="store_true")
    parse.add_argument("--rows", required=True)
    args = parse.parse_args()
    bench = Bench(args.base, QUICK if args.quick else Scale())
    chosen = [row for row in ROWS if row.name in args.rows.split()]
    for turn in range(args.repeat):
        for row in [row for row in chosen if not row.last]:
            # Who comes after whom changes from round to round.
            for at in range(len(row.subjects)):
                bench.report(row, row.subjects[(turn + at) % len(row.subjects)])
    for row in [row for row in chosen if row.last]:
        for _ in range(args.repeat if row.name == "layer-rm" else 1):
            bench.report(row, "plyfs")


if __name__ == "__main__":
    main()
