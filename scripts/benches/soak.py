"""One run of scripts/soak: mixed load on one variant of plyfs, inside the namespaces of one mode; see there."""

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import mounts  # noqa: E402
import stress  # noqa: E402

RECORDED, RACING, BUILDING = 4, 2, 2
PATIENCE = 400  # seconds that a worker may be late: a build in it may take that long on a slow machine
WARMING = 300  # seconds at most until the first rest: tables and pools reach their size
BOUNDS = {"memory": 5.0, "descriptors": 8, "threads": 8}  # by how much each may grow between two rests
COMPARE = pathlib.Path(__file__).resolve().parent.parent / "treecmp.py"


def write_lower(lower, seed):
    """What the workers begin with: a small tree each, one to share, and the projects."""
    for number in range(RECORDED + 1):
        place, random_ = lower / ("shared" if number == RECORDED else f"own{number}"), random.Random(seed + number)
        place.mkdir(parents=True)
        for _ in range(120):
            path = place / stress.pick_path(random_)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(random_.randbytes(random_.randrange(20_000)))
                if random_.random() < 0.1:
                    os.link(path, path.parent / f"f{random_.randrange(10)}")
            except OSError:
                pass  # a name that is taken
    for number in range(BUILDING):
        stress.write_project(lower / f"build{number}")


def report(path, work, *words):
    """The body of a worker's process."""
    try:
        told = {"done": work(*words)}
    except BaseException as error:  # whatever it is belongs in the report
        told = {"error": f"{type(error).__name__}: {error}"}
    path.write_text(json.dumps(told))


class Soak:
    def __init__(self, base, variant, seed):
        self.base, self.variant, self.seed = pathlib.Path(base), variant, seed
        shutil.rmtree(self.base, ignore_errors=True)
        self.lower, self.plain = self.base / "lower", self.base / "plain"
        write_lower(self.lower, seed)
        subprocess.run(["cp", "-a", str(self.lower), str(self.plain)], check=True)
        self.wrong, self.done = [], {}

    def filesystem(self):
        return mounts.Filesystem(self.variant, [self.lower], self.base / "run", keep=True)

    def load(self, fs, seconds):
        """Everything at once for some time; what went wrong is in `wrong`."""
        end = time.monotonic() + seconds
        kinds = [(stress.recorded, f"own{n}") for n in range(RECORDED)] + [(stress.racing, "shared")] * RACING
        kinds += [(stress.building, f"build{n}") for n in range(BUILDING)]
        workers = []
        for number, (work, name) in enumerate(kinds):
            self.seed += 1
            told = self.base / f"report{number}"
            told.unlink(missing_ok=True)
            words = (f"{mounts.POINT}/{name}", str(self.plain / name), self.seed, end)
            process = multiprocessing.Process(target=report, args=(told, work, *words))
            process.start()
            workers.append((f"{work.__name__} {number}", process, told))
        while time.monotonic() < end and any(process.is_alive() for _, process, _ in workers):
            time.sleep(min(60, max(0.1, end - time.monotonic())))
            print(f"    {self.variant}: {json.dumps(usage(fs))}", file=sys.stderr, flush=True)
        for name, process, told in workers:
            process.join(max(1, end + PATIENCE - time.monotonic()))
            if process.is_alive():
                self.wrong.append(f"{name}: hangs")
                fs.abort()
                process.kill()
                process.join()
                continue
            found = json.loads(told.read_text()) if told.exists() else {"error": f"ended with {process.exitcode}"}
            if "error" in found:
                self.wrong.append(f"{name}: {found['error']}")
            kind = name.split()[0]
            self.done[kind] = self.done.get(kind, 0) + found.get("done", 0)

    def rest(self, fs):
        """What the server holds when nobody wants anything and the kernel has forgotten all."""
        for _ in range(3):
            fs.forget()
            time.sleep(1)
        return usage(fs)

    def compare(self, title, *words):
        done = subprocess.run([sys.executable, str(COMPARE), *map(str, words)], capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            self.wrong.append(f"{title}: {done.stdout[:2000]}{done.stderr[:500]}")

    def run(self, seconds):
        """(what the server held at the first rest, at the last one)."""
        begin = int(time.time())
        self.compare("manifest of the lower directory", "--save", self.base / "before", self.lower)
        with self.filesystem() as fs:
            self.load(fs, min(WARMING, seconds / 4))
            first = self.rest(fs)
            self.load(fs, seconds - min(WARMING, seconds / 4))
            last = self.rest(fs)
            for name, bound in BOUNDS.items():
                if last[name] > first[name] + bound:
                    self.wrong.append(f"{name}: {first[name]} at the first rest, {last[name]} at the last, allowed are {bound} more")
            for number in range(RECORDED):
                name = f"own{number}"
                self.compare(f"{name}: plain directory | mount", "--times-before", begin, self.plain / name, f"{mounts.POINT}/{name}")
            self.compare("manifest of the mount", "--save", self.base / "mounted", mounts.POINT)
        if fs.server.returncode != 0:
            self.wrong.append(f"the server ended with {fs.server.returncode}: {fs.log()}")
        with self.filesystem():
            self.compare("before a remount | after it", self.base / "mounted", mounts.POINT)
        self.compare("the lower directory before | after", self.base / "before", self.lower)
        return first, last


def usage(fs):
    process = pathlib.Path(f"/proc/{fs.server.pid}")
    try:
        found = {"memory": round(fs.memory(), 1)}
        return found | {"descriptors": len(os.listdir(process / "fd")), "threads": len(os.listdir(process / "task"))}
    except (OSError, StopIteration):
        return {name: 0 for name in BOUNDS}  # it is gone, which other messages tell


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("--base", required=True)
    parse.add_argument("--variants", required=True)
    parse.add_argument("--seconds", type=float, required=True)
    parse.add_argument("--seed", type=int, required=True)
    args = parse.parse_args()
    mode, failed = os.environ["PLYFS_MODE"], 0
    good, bad = mounts.variants(args.variants.split(), args.base, ("handleless", "passthrough", "handles"))
    for name, why in bad:
        print(f"skipped: soak {mode} {name}: needs {','.join(mounts.plyfs_options(name)) or 'a mount'} ({why})")
    for name in good:
        soak = Soak(pathlib.Path(args.base, "soak"), name, args.seed)
        try:
            first, last = soak.run(args.seconds)
            held = ", ".join(f"{key} {first[key]} then {last[key]}" for key in BOUNDS)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            soak.wrong.append(f"{type(error).__name__}: {error}")
            held = "nothing measured"
        done = ", ".join(f"{count} {kind}" for kind, count in soak.done.items())
        print(f"{'FAILED' if soak.wrong else 'ok':7} soak {mode} {name}: {done}; {held}; seed {args.seed}", flush=True)
        for text in soak.wrong:
            print(f"    {text}", flush=True)
        failed += bool(soak.wrong)
    print(f"{len(good) - failed} passed, {failed} failed, {len(bad)} skipped")
    sys.exit(1 if failed or not good else 0)


if __name__ == "__main__":
    main()
