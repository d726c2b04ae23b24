"""The measuring part of scripts/bench, inside the namespaces of one mode; see there.

Round after round over all rows; within a row each filesystem does the work in turn, so that what disturbs the machine
disturbs all alike. A fresh upper and a fresh mount each time: `cold` means that the mount knows nothing yet, while what
lies below is in the page cache for all. Prints one JSON object a measurement.

A row that has a `value` gives, in the place of seconds, what its command `said`, the `memory` that the server holds
afterwards, or how much of that it has `kept` when the kernel has forgotten all names.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import mounts  # noqa: E402
import prepare  # noqa: E402
import rows  # noqa: E402

PATIENCE = 240  # seconds that a command may take


def client(commands, fs, listen=False):
    """Runs commands at once: (wall seconds, CPU seconds of them, what they printed). One that hangs ends the mount."""
    late = threading.Event()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaint:
        output = said if listen else subprocess.DEVNULL
        start = time.perf_counter()
        running = [
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=complaint, start_new_session=True)
            for words in commands
        ]

        def stop():
            late.set()
            fs.abort()
            for child in running:
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(PATIENCE, stop)
        timer.start()
        cpu = 0.0
        for child in running:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
        wall = time.perf_counter() - start
        timer.cancel()
        if late.is_set():
            raise RuntimeError(f"{commands[0][0]}: nothing after {PATIENCE} s")
        for child, words in zip(running, commands):
            # grep finds nothing, on purpose.
            if child.returncode != (1 if words[0] == "grep" else 0):
                complaint.seek(0)
                raise RuntimeError(f"{words[0]}: exit status {child.returncode}: {complaint.read(300).decode(errors='replace')}")
        said.seek(0)
        return wall, cpu, said.read().decode()


class Bench:
    def __init__(self, base, scale, profile=False):
        self.base, self.profile = pathlib.Path(base), profile
        self.sources = prepare.Sources(self.base / "sources", scale)
        self.words = dataclasses.asdict(scale) | {"m": mounts.POINT, "load": os.environ["LOAD"], "src": str(self.sources.base)}

    def command(self, words):
        return [word.format(**self.words) for word in words]

    def filesystem(self, name, row):
        lowers, place = self.sources.lowers(row.lower), self.base / "run"
        if name == "plain":
            # Only what is going to be changed needs a copy.
            lowest = self.sources.lowest(row.lower)
            if not row.changes and row.lower != "empty":
                return mounts.Filesystem(name, [lowest], place)
            copy = self.base / "copy"
            mounts.discard(copy)
            prepare.shell("cp", "-a", lowest, copy)
            return mounts.Filesystem(name, [copy], place)
        options = []
        # The kernel has metacopies for root only, fuse-overlayfs none.
        if row.metacopy and name != "fuse-overlayfs" and not (name == "kernel" and mounts.rootless()):
            options.append("metacopy=on")
        return mounts.Filesystem(name, lowers, place, options, cwd=self.sources.directory(row.lower))

    def measure(self, name, row):
        """The measurements of one row in one mount."""
        with self.filesystem(name, row) as fs:
            at_start = fs.memory() if fs.server else 0
            for words in row.first:
                client([self.command(words)], fs)
            mounts.run(["sync", "-f", str(self.base)])
            commands = [self.command(words) for words in (row.run if row.both else [row.run])]
            for _ in range(row.times):
                asked = fs.requests() if self.profile else {}
                before = fs.cpu()
                wall, cpu, said = client(commands, fs, listen=row.value == "said")
                server = fs.cpu() - before
                if not row.value:
                    kinds = since(asked, fs.requests()) if self.profile else {}
                    yield {"wall": wall, "cpu": cpu + server, "server": server} | ({"requests": kinds} if kinds else {})
                elif row.value == "said":
                    yield {"value": float(said)}
                else:
                    if row.value == "kept":
                        forgotten(fs)
                    yield {"value": fs.memory() - (at_start if row.value == "kept" else 0)}


def forgotten(fs):
    """Waits until the server has done with what the kernel tells it to forget."""
    fs.forget()
    for _ in range(10):
        before = fs.cpu()
        time.sleep(0.5)
        if fs.cpu() - before < 0.01:
            return


def since(before, after):
    """{kind: [how many, seconds]} of what came in between."""
    kinds = {kind: [count - before.get(kind, (0, 0))[0], seconds - before.get(kind, (0, 0))[1]] for kind, (count, seconds) in after.items()}
    return {kind: found for kind, found in kinds.items() if found[0] > 0}


def applies(row, name):
    if row.value in ("memory", "kept"):
        return name not in ("plain", "kernel")
    return not row.value or name != "plain"


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("--base", required=True)
    parse.add_argument("--repeat", type=int, required=True)
    parse.add_argument("--seconds", type=float, default=float("inf"), help="no further round that would end later")
    parse.add_argument("--quick", action="store_true")
    parse.add_argument("--profile", action="store_true", help="also what the servers of plyfs were asked")
    parse.add_argument("--fs", required=True)
    parse.add_argument("--rows", required=True)
    parse.add_argument("--variants", required=True)
    args = parse.parse_args()
    begin = time.monotonic()
    mode = os.environ["PLYFS_MODE"]
    peers, no_peers = mounts.available(args.fs.split(), args.base)
    own, not_own = mounts.variants(args.variants.split(), args.base)
    for name, why in no_peers + not_own:
        wants = ",".join(mounts.plyfs_options(name)) if name not in mounts.PEERS else "a mount"
        print(f"skipped: bench {mode} {name}: needs {wants or 'a mount'} ({why})", file=sys.stderr)
    names = peers + own
    print(json.dumps({"mode": mode, "subjects": names}), flush=True)
    bench = Bench(args.base, prepare.QUICK if args.quick else prepare.Scale(), args.profile)
    chosen = [row for row in rows.ROWS if row.name in args.rows.split()]
    bad = set()
    for turn in range(args.repeat):
        start = time.monotonic()
        for row in chosen:
            bench.sources.make(row.lower)
            # Who comes after whom changes from round to round.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if not applies(row, name) or (row.name, name) in bad:
                    continue
                try:
                    for found in bench.measure(name, row):
                        print(json.dumps({"mode": mode, "row": row.name, "subject": name} | found), flush=True)
                except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
                    bad.add((row.name, name))
                    print(json.dumps({"mode": mode, "row": row.name, "subject": name, "error": str(error)}), flush=True)
        took = time.monotonic() - start
        print(f"{mode}: round {turn + 1} of {args.repeat} took {took:.0f} s", file=sys.stderr)
        if time.monotonic() - begin + took > args.seconds:
            break


if __name__ == "__main__":
    main()
