"""The lower directories that the rows of scripts/bench work on: made when first needed, the same in every run."""

import os
import pathlib
import random
import re
import shutil
import subprocess
from dataclasses import dataclass

EACH = 500  # files in a directory
LONG_AGO = 1577836800  # older than any index git could make of the files


@dataclass(frozen=True)
class Scale:
    """How large the rows are."""

    files: int = 10000
    many: int = 50000
    names: int = 500  # missing ones in each directory
    execs: int = 300
    units: int = 40
    mib: int = 256
    huge: int = 600
    bytes: int = 128 << 20


QUICK = Scale(files=1000, many=5000, names=500, execs=50, units=4, mib=32, huge=64, bytes=16 << 20)


class Sources:
    def __init__(self, base, scale):
        self.base, self.scale = pathlib.Path(base), scale
        self.made = set()
        self.base.mkdir(parents=True, exist_ok=True)
        self.list("directories", {directory for directory, _ in tree(scale.files)})
        self.list("files", [f"{directory}/{name}" for directory, name in tree(scale.files)])
        self.list("many-files", [f"{directory}/{name}" for directory, name in tree(scale.many)])

    def list(self, name, paths):
        (self.base / name).write_text("".join(f"tree/{path}\n" for path in sorted(paths)))

    def lowers(self, kind):
        """Topmost first; where they are many, relative to `directory`."""
        if kind.startswith("layers"):
            return [str(n) for n in range(int(kind[6:]))]
        return [self.base / kind]

    def directory(self, kind):
        return self.base / kind if kind.startswith("layers") else self.base

    def lowest(self, kind):
        return self.directory(kind) / self.lowers(kind)[-1]

    def make(self, kind):
        if kind not in self.made:
            self.made.add(kind)
            path = self.base / kind
            path.mkdir()
            if kind.startswith("layers"):
                self.layers(path, int(kind[6:]))
            else:
                getattr(self, f"make_{kind}")(path)

    def make_empty(self, path):
        """With it goes the archive that untar unpacks into the empty directory."""
        self.make("tree")
        shell("tar", "-cf", self.base / "tree.tar", "-C", self.base / "tree", "tree")

    def make_tree(self, path):
        write_tree(path / "tree", self.scale.files)

    def make_many(self, path):
        write_tree(path / "tree", self.scale.many)

    def make_two(self, path):
        self.make_tree(path)
        write_tree(path / "tree2", self.scale.files)

    def make_repo(self, path):
        write_tree(path / "repo", self.scale.files)
        git = ["git", "-C", path / "repo", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "tree"], ["status"]):
            shell(*git, *words)

    def make_big(self, path):
        random_file(path / "big", self.scale.mib)

    def make_huge(self, path):
        self.make_many(path)
        random_file(path / "huge", self.scale.huge)

    def make_program(self, path):
        shutil.copy(os.environ["LOAD"], path / "load")

    def make_project(self, path):
        """A root with a compiler, and in it C files that read the usual headers, and a makefile."""
        project = path / "project"
        project.mkdir()
        headers = ["stdio", "stdlib", "string", "unistd", "fcntl", "errno", "signal", "time", "pthread", "sys/stat"]
        for n in range(self.scale.units):
            lines = [f"#include <{name}.h>" for name in headers]
            lines += [f'int f{n}_{k}(int x) {{ char b[64]; snprintf(b, sizeof b, "%d", x); return atoi(b) * {k + 1} + x; }}' for k in range(30)]
            (project / f"f{n}.c").write_text("\n".join(lines) + "\n")
        rule = "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\nall: $(OBJECTS)\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\nclean:\n\trm -f *.o\n"
        (project / "Makefile").write_text(rule)
        toolchain(path, project / "f0.c")

    def layers(self, path, count):
        """The tree in the lowest layer; each one above has the same directories and one file of its own in each."""
        self.make("tree")
        names = sorted({directory for directory, _ in tree(self.scale.files)})
        for n in range(count - 1):
            for name in names:
                place = path / str(n) / "tree" / name
                place.mkdir(parents=True)
                (place / f"layer{n}").write_text("x")
        shell("cp", "-a", self.base / "tree", path / str(count - 1))


def shell(*words, **how):
    done = subprocess.run([str(word) for word in words], check=True, timeout=600, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, **how)
    return done.stdout


def tree(files):
    """(directory, name) of every file of a tree."""
    return [(f"dir{number // EACH:03}", f"file{number:05}.txt") for number in range(files)]


def write_tree(path, files):
    """Files of 0.2 to 6 kB."""
    pick = random.Random(1)
    text = bytes(pick.choice(b"abcdefghij klmnop\n") for _ in range(6144))
    for directory, name in tree(files):
        (path / directory).mkdir(parents=True, exist_ok=True)
        (path / directory / name).write_bytes(text[: pick.randrange(200, 6144)])
        os.utime(path / directory / name, (LONG_AGO, LONG_AGO))


def random_file(path, mib):
    shell("dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={mib}", "status=none")


def toolchain(root, unit):
    """What sh, make and gcc need to compile `unit`, at the paths that this machine has them at."""
    programs = [shutil.which(name, path="/usr/bin:/bin") for name in ("gcc", "make", "sh", "rm", "as")]
    programs.append(shell("/usr/bin/gcc", "-print-prog-name=cc1").strip())
    libraries = re.findall(r"(/\S+)", shell("ldd", *programs))
    headers = re.findall(r"(/\S+\.h)", shell("/usr/bin/gcc", "-O1", "-M", unit))
    names = {name.rstrip(":") for name in programs + libraries + headers}
    # By the name without symlinks in its directories (a merged /usr), and what the last symlink means.
    found = {os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name)) for name in names}
    found |= {os.path.realpath(name) for name in names}
    for name in sorted(found):
        place = root / name[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy2(os.path.realpath(name), place)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}") and not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    (root / "tmp").mkdir()
