"""What scripts/bench measures: one row a workload.

A row names the lower directories it needs, what is done on the mount before the clock starts (`first`) and what is
timed (`run`). `{m}` stands for the mount point, `{load}` for the load program, `{src}` for the prepared sources,
`{names}` for the number of missing names asked in a directory, and so on: see `measure.py`. Goals are ratios to the
kernel's overlay in the same run, for the ring and for the classic transport.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    run: list  # one command, or with `both` two that run at once
    lower: str = "empty"  # a set of lower directories that prepare.py makes
    first: list = field(default_factory=list)
    goal: tuple = ()  # (ring, classic)
    goal_rootless: tuple = ()  # where it differs
    metacopy: bool = False  # mounted with metacopy=on where that can be had
    both: bool = False
    times: int = 1  # how often `run` is measured in one mount
    value: str = ""  # what the row gives in the place of seconds, see `measure.py`
    unit: str = "s"
    most: float = 0  # the goal of a row that has a value
    against: str = ""  # the row with which each filesystem is compared, in the place of the kernel's overlay
    faster: tuple = (1.0, 1.0)  # (ring, classic): how many times as fast as fuse-overlayfs it has to be
    quick: bool = True  # part of --quick
    changes: bool = False  # a lower file would change if it were not for the overlay


def warm(name, what, run, **more):
    """Done twice before it is measured: the first time reads, the second is what programs see from then on."""
    return Row(name, f"{what}, warm", run, first=[run, run], times=3, **more)


FIND = ["find", "{m}/tree", "-printf", "%s %p\\n"]
MISSING = ["{load}", "missing", "{m}", "{src}/directories", "{names}"]
LOOKUP = ["{load}", "stat", "{m}", "{src}/files"]
STATUS = ["git", "-C", "{m}/repo", "status", "--short"]
GREP = ["grep", "-r", "no such line", "{m}/tree"]
CAT = ["{load}", "cat", "{m}/tree"]
WALK = ["{load}", "walk", "{m}/tree"]
COMPILE = ["chroot", "{m}", "/bin/sh", "-c", "cd /project && make -s clean && make -s"]
UNTAR = ["tar", "-xf", "{src}/tree.tar", "-C", "{m}"]
REMOVE = ["rm", "-rf", "{m}/tree"]
READ = ["dd", "if={m}/big", "of=/dev/null", "bs=1M", "status=none"]
WRITE = ["dd", "if=/dev/zero", "of={m}/new", "bs=1M", "count={mib}", "status=none"]
MANY = {"faster": (5.0, 3.0)}

ROWS = [
    warm("find-warm", "find with sizes", FIND, lower="tree", goal=(1.1, 1.2)),
    warm("missing-warm", "missing names, asked again", MISSING, lower="tree", goal=(1.1, 1.2)),
    warm("stat-warm", "stat of every file", WALK, lower="tree"),
    warm("git-warm", "git status", STATUS, lower="repo", goal=(1.1, 1.2)),
    warm("grep-warm", "grep -r", GREP, lower="tree", goal=(1.1, 1.2), **MANY),
    warm("open-warm", "open and close", ["{load}", "open", "{m}/tree"], lower="tree"),
    warm("cat-warm", "open, read and close", CAT, lower="tree", goal=(1.1, 1.2)),
    warm("exec-warm", "fork and exec of a small program", ["{load}", "exec", "{execs}", "{m}/load", "nothing"], lower="program"),
    Row("compile-warm", "compile of {units} C files, warm", COMPILE, lower="project", first=[COMPILE], goal=(1.15, 1.2), changes=True),
    Row("find-cold", "find with sizes, cold", FIND, lower="tree", goal=(2.0, 3.0)),
    Row("git-cold", "git status, cold", STATUS, lower="repo", goal=(2.5, 4.0)),
    Row("cat-cold", "open, read and close, cold", CAT, lower="tree"),
    Row("untar", "untar", UNTAR, goal=(1.6, 4.0), **MANY),
    Row("cp", "cp -a", ["cp", "-a", "{m}/tree", "{m}/copy"], lower="tree", goal=(1.6, 4.0), changes=True, **MANY),
    Row("create", "create and write of small files", ["{load}", "create", "{m}/new", "{files}"]),
    Row("write-4k", "4 KiB writes to an open file", ["{load}", "write", "{m}/file", "{bytes}"], goal=(1.1, 1.1)),
    Row("chmod", "chmod -R of lower files", ["chmod", "-R", "go-w", "{m}/tree"], lower="tree", goal=(1.0, 1.5), metacopy=True, changes=True, **MANY),
    Row("chown", "chown -R of lower files", ["chown", "-R", "1:1", "{m}/tree"], lower="tree", goal=(1.0, 1.5), metacopy=True, changes=True),
    Row("read-big", "large sequential read, cold", READ, lower="big", goal=(1.5, 1.5), goal_rootless=(3.0, 4.0)),
    Row("write-big", "large sequential write", WRITE, goal=(1.1, 1.1), goal_rootless=(3.0, 3.3)),
    Row("cat-two", "two clients at once, cat of a tree each", [CAT, ["{load}", "cat", "{m}/tree2"]], lower="two", both=True, goal=(1.3, 3.0)),
    # These delete, which makes new files dear for a while: what comes after them makes none.
    Row("rm-lower", "rm -rf of lower files", REMOVE, lower="tree", goal=(2.5, 5.0), changes=True, **MANY),
    Row("rm-upper", "rm -rf of upper files", REMOVE, first=[UNTAR], goal=(2.5, 5.0), **MANY),
    Row("lookup-1", "lookup in 1 layer, cold", LOOKUP, lower="layers1"),
    Row("lookup-64", "lookup in the lowest of 64, cold", LOOKUP, lower="layers64", against="lookup-1", goal=(1.3, 1.3)),
    Row("lookup-400", "lookup in the lowest of 400, cold", LOOKUP, lower="layers400", against="lookup-1", goal=(1.3, 1.3), quick=False),
    Row("absent-1", "missing names in 1 layer, cold", MISSING, lower="layers1"),
    Row("absent-64", "missing names in 64 layers, cold", MISSING, lower="layers64", against="absent-1", goal=(1.3, 1.3)),
    Row("absent-400", "missing names in 400 layers, cold", MISSING, lower="layers400", against="absent-1", goal=(1.3, 1.3), quick=False),
    Row("stall", "longest lookup during a copy-up", ["{load}", "stall", "{m}", "{src}/many-files", "{m}/huge"], lower="huge",
        value="said", unit="ms", most=10, quick=False),
    Row("memory", "server's memory, 50,000 names known", WALK, lower="many", value="memory", unit="MiB", most=20, quick=False),
    Row("kept", "server's memory after they are forgotten", WALK, lower="many", value="kept", unit="MiB", most=5, quick=False),
]


def goal(row, mode, ring):
    """The ratio that is wanted of plyfs, or None."""
    wanted = row.goal_rootless if mode != "root" and row.goal_rootless else row.goal
    return wanted[0 if ring else 1] if wanted else None
