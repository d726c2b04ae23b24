"""The filesystems that scripts/bench and scripts/soak mount, one after the other, inside a session's namespaces."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

POINT = "/mnt"
TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 60  # seconds that a mount or an unmount may take
WORDS = {
    **{name: f"transport={name}" for name in ("ring", "classic")},
    **{name: f"io={name}" for name in ("handleless", "passthrough", "handles")},
}
PEERS = ("plain", "kernel", "fuse-overlayfs")


def plyfs_options(variant):
    """The options of a variant, `ring+passthrough`: known words and plain options; `default` has none."""
    return [WORDS.get(word, word) for word in variant.split("+") if word != "default"]


def rootless():
    return os.environ.get("PLYFS_MODE") != "root"


def discard(path):
    """Gets a tree out of the way without deleting it: for a minute ext4 keeps away from inodes that were just deleted, and looks
    at each of them again for every new file, which would be counted against whoever is measured next. What was got out of the
    way is deleted, and that minute waited for, when half of the disk is full."""
    path = pathlib.Path(path)
    trash = path.parent / "trash"
    trash.mkdir(exist_ok=True)
    if path.exists():
        path.rename(trash / str(time.monotonic_ns()))
    disk = os.statvfs(trash)
    if min(disk.f_bavail / disk.f_blocks, disk.f_favail / disk.f_files if disk.f_files else 1) < 0.5 and any(trash.iterdir()):
        shutil.rmtree(trash, ignore_errors=True)
        run(["sync", "-f", str(path.parent)])
        time.sleep(62)


class Filesystem:
    """One mount at POINT of a peer or a variant of plyfs; `place` holds upper and work and is emptied first."""

    def __init__(self, name, lowers, place, options=(), cwd="/", keep=False):
        self.name, self.lowers, self.place, self.cwd = name, lowers, pathlib.Path(place), cwd
        self.more, self.keep = list(options), keep
        self.server = self.connection = None

    def options(self):
        words = [f"lowerdir={':'.join(map(str, self.lowers))}", f"upperdir={self.place}/upper", f"workdir={self.place}/work"]
        if self.name == "kernel" and rootless():
            words.append("userxattr")
        if self.name not in PEERS:
            words += plyfs_options(self.name)
        return ",".join(words + self.more)

    def __enter__(self):
        if not self.keep:
            discard(self.place)
        for name in ("upper", "work"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        try:
            self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def mount(self):
        if self.name == "plain":
            run(["mount", "--bind", str(self.lowers[-1]), POINT])
        elif self.name == "kernel":
            run(["mount", "-t", "overlay", "overlay", "-o", self.options(), POINT], cwd=self.cwd)
        else:
            program = ["/usr/bin/fuse-overlayfs"] if self.name == "fuse-overlayfs" else [os.environ["PLYFS"], "mount"]
            self.serve(program + ["-f", "-o", self.options(), POINT])

    def serve(self, words):
        with open(self.place / "log", "wb") as log:
            self.server = subprocess.Popen(words, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while self.server.poll() is None and time.monotonic() < end:
            self.connection = mounted_device()
            if self.connection:
                return
            time.sleep(0.002)
        raise RuntimeError(self.log() or "no mount and no message")

    def log(self):
        lines = (self.place / "log").read_text(errors="replace").splitlines() if self.server else []
        return " ".join(lines[-2:])[:300]

    def __exit__(self, *_):
        if not attempt(["umount", POINT]):
            self.abort()
            attempt(["umount", "-l", POINT])
        if self.server:
            try:
                self.server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.abort()
                self.server.wait()

    def abort(self):
        """Ends a mount that does not answer: nothing waits for it afterwards."""
        if self.connection:
            try:
                pathlib.Path("/sys/fs/fuse/connections", self.connection, "abort").write_text("1")
            except OSError:
                pass
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGKILL)

    def forget(self):
        """Lets the kernel drop every name and inode of the mount that nobody holds: a remount does that."""
        run(["mount", "-i", "-o", "remount,rw", POINT])

    def cpu(self):
        """Seconds that the server has used; 0 where there is none."""
        return cpu_of(self.server.pid) if self.server else 0.0

    def requests(self):
        """{kind: (how many were answered, seconds that took)} since the mount began, as the server counts; nothing of others."""
        if not self.server or self.name in PEERS:
            return {}
        log = self.place / "log"
        start = log.stat().st_size
        self.server.send_signal(signal.SIGUSR1)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            report = log.read_bytes()[start:].decode(errors="replace")
            if re.search(r"^\s*request .*\n(?:.*\n)*\Z", report, re.MULTILINE):
                return counted(report)
            time.sleep(0.002)
        raise RuntimeError("no report on USR1")

    def memory(self):
        """MiB that the server holds in memory."""
        text = pathlib.Path(f"/proc/{self.server.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def mounted_device():
    """The minor number of what is mounted at POINT, the name of its FUSE connection; asks nothing of the mount."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == POINT:
            return words[2].split(":")[1]
    return None


def cpu_of(pid):
    """What /proc/PID/stat says in ticks, or finer where the scheduler counts for each thread."""
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = (int(words[11]) + int(words[12])) / TICK
    fine = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            fine += int((task / "schedstat").read_text().split()[0])
        except OSError:
            pass
    return fine / 1e9 if fine / 1e9 > ticks - 0.05 else ticks


def counted(report):
    """The table in what a server logs on USR1."""
    lines = iter(report.splitlines())
    next(line for line in lines if line.split()[:1] == ["request"])
    words = [line.split() for line in lines]
    return {word[0]: (int(word[1]), int(word[1]) * float(word[2]) / 1e6) for word in words}


def run(words, **how):
    """Runs a command to its end; RuntimeError with what it said when it fails."""
    try:
        done = subprocess.run(words, timeout=PATIENCE, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", **how)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{words[0]}: nothing after {PATIENCE} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]}: {' '.join(done.stderr.split())[:300] or done.returncode}")
    return done.stdout


def attempt(words):
    try:
        run(words)
    except RuntimeError:
        return False
    return True


def available(names, place):
    """(the names that can be mounted here, [(name, why not)]). An option that is ignored counts as refused."""
    good, bad = [], []
    lower = pathlib.Path(place, "lower")
    lower.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            with Filesystem(name, [lower], pathlib.Path(place, "probe")) as fs:
                run(["sh", "-c", f"echo probe >{POINT}/probe && cat {POINT}/probe && rm {POINT}/probe"])
                if fs.server and (fs.server.poll() is not None or (name not in PEERS and "ignored" in fs.log())):
                    raise RuntimeError(fs.log())
            good.append(name)
        except RuntimeError as error:
            bad.append((name, str(error)))
    return good, bad


def variants(wanted, place, modes=("handleless", "passthrough")):
    """The variants of plyfs to use: `wanted`, or all with these modes that this machine and this build have."""
    if wanted:
        return available(wanted, place)
    transports = ("ring", "classic")
    bad = []
    # A build may know only one of the options, or none.
    for names in ([f"{transport}+{mode}" for transport in transports for mode in modes], transports, modes, ("default",)):
        good, worse = available(names, place)
        bad += worse
        if good:
            break
    return good, bad
