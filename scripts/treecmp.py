#!/usr/bin/env python3
"""Compares two trees by names, types, content, mode, owner, times, links, devices and xattrs.

    treecmp.py [option...] A B       A and B: a directory, or a manifest made by --save
    treecmp.py [option...] --save FILE DIR

Prints one line a difference; exits 0 when there is none, 1 otherwise, 2 on wrong usage.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def digest(path):
    """SHA-256 of a file's content."""
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def xattrs(path):
    """All visible xattrs, values in hexadecimal; SELinux labels are the host's affair."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        return {"listxattr": error.strerror}
    found = {}
    for name in names:
        if name != "security.selinux":
            try:
                found[name] = os.getxattr(path, name, follow_symlinks=False).hex()
            except OSError as error:
                found[name] = error.strerror
    return found


def describe(path, info):
    """What is compared of one object."""
    kind = KINDS[stat.S_IFMT(info.st_mode)]
    entry = {
        "type": kind,
        "mode": oct(stat.S_IMODE(info.st_mode)),
        "owner": f"{info.st_uid}:{info.st_gid}",
        "mtime": info.st_mtime_ns,
        "xattrs": xattrs(path),
    }
    if kind == "file":
        entry["size"] = info.st_size
        entry["content"] = digest(path)
        entry["sparse"] = info.st_size > 65536 and info.st_blocks * 512 < info.st_size // 2
    elif kind == "symlink":
        entry["target"] = os.readlink(path)
    elif kind in ("char", "block"):
        entry["device"] = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    return entry


def scan(root, ignore):
    """path -> description, links grouped under the first name of each inode."""
    found, first = {}, {}

    def visit(name):
        path = os.path.join(root, name) if name else root
        if any(fnmatch.fnmatch(name, pattern) for pattern in ignore):
            return
        try:
            info = os.lstat(path)
            found[name] = describe(path, info)
            names = sorted(os.listdir(path)) if stat.S_ISDIR(info.st_mode) else []
        except OSError as error:
            found[name] = {"type": f"error {error.strerror} in {os.path.basename(error.filename or '')}"}
            return
        if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
            found[name]["links"] = first.setdefault((info.st_dev, info.st_ino), name)
        for child in names:
            visit(f"{name}/{child}" if name else child)

    # Directories may lie deeper in each other than functions may call each other by default.
    sys.setrecursionlimit(100_000)
    visit("")
    return found


def load(source, ignore):
    """A directory is scanned, a manifest is read."""
    if os.path.isdir(source):
        return scan(source, ignore)
    with open(source, encoding="ascii") as file:
        tree = json.load(file)
    return {name: entry for name, entry in tree.items() if not any(fnmatch.fnmatch(name, p) for p in ignore)}


def as_on_disk(name, entry, layers):
    """Whether a file is shown with the very contents that the topmost layer with its name has."""
    for layer in layers:
        path = os.path.join(layer, name)
        if os.path.lexists(path):
            there = describe(path, os.lstat(path))
            return entry is not None and there["type"] == "file" and all(there[key] == entry.get(key) for key in ("type", "mode", "owner", "size", "content"))
    return False


def alone(tree):
    """A link group of one name (the others are outside or ignored) is no group."""
    sizes = {}
    for entry in tree.values():
        if "links" in entry:
            sizes[entry["links"]] = sizes.get(entry["links"], 0) + 1
    return {group for group, size in sizes.items() if size == 1}


def skipped_keys(name, a, b, options):
    """The keys not compared for this name."""
    keys = set(options.without)
    if any(fnmatch.fnmatch(name, pattern) for pattern in options.ignore_content):
        keys |= {"content", "size", "sparse", "target"}
    limit = options.times_before * 10**9
    if a.get("mtime", 0) >= limit and b.get("mtime", 0) >= limit:
        keys.add("mtime")
    if not options.holes:
        keys.add("sparse")
    return keys


def brief(value):
    """A digest or a long name by its first letters."""
    text = value if isinstance(value, str) else str(value)
    return shown(text) if len(text) < 64 or "/" in text else text[:12] + ".."


def differences(a, b, options):
    """Every difference, as (name, text)."""
    lone = (alone(a), alone(b))
    for name in sorted(a.keys() | b.keys()):
        if name not in b or name not in a:
            here, there = (options.a, options.b) if name in a else (options.b, options.a)
            yield name, f"{(a.get(name) or b.get(name))['type']} in {here}, missing in {there}"
            continue
        one, two = a[name], b[name]
        omit = skipped_keys(name, one, two, options)
        for key in sorted((one.keys() | two.keys()) - omit):
            left, right = one.get(key), two.get(key)
            if key == "links":
                left, right = (None if v in s else v for v, s in zip((left, right), lone))
            if key == "xattrs" and left is not None and right is not None:
                for attr in sorted(left.keys() | right.keys()):
                    if left.get(attr) != right.get(attr):
                        yield name, f"{attr}: {brief(left.get(attr))} | {brief(right.get(attr))}"
            elif left != right:
                yield name, f"{key}: {brief(left)} | {brief(right)}"


def shown(name):
    """A path for a person: long names shortened, bytes that are not text escaped."""
    parts = [part if len(part) < 40 else f"{part[:3]}..({len(part)})" for part in (name or ".").split("/")]
    return "/".join(parts).encode("utf-8", "backslashreplace").decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b", nargs="?")
    parser.add_argument("--save", metavar="FILE", help="write the manifest of A to FILE")
    parser.add_argument("--ignore", metavar="GLOB", action="append", default=[], help="leave a name and what is below out")
    parser.add_argument("--ignore-content", metavar="GLOB", action="append", default=[], help="the name must exist in both, no more")
    parser.add_argument("--without", metavar="KEY", action="append", default=[], help="do not compare: links, xattrs, owner, ...")
    parser.add_argument("--times-before", metavar="EPOCH", type=float, default=float(2**40), help="compare times only where one is older")
    parser.add_argument("--holes", action="store_true", help="a sparse file must stay sparse")
    parser.add_argument("--or", dest="other", metavar="C", help="a name may also be in B as it is in C")
    parser.add_argument("--or-layers", dest="other_layers", metavar="DIRS", help="a file may also be in B as the first of these, DIR:DIR..., has it")
    options = parser.parse_args()
    if (options.save is None) == (options.b is None):
        parser.error("either --save FILE A, or A B")
    tree = load(options.a, options.ignore)
    if options.save:
        with open(options.save, "w", encoding="ascii") as file:
            json.dump(tree, file)
        return 0
    found = list(differences(tree, load(options.b, options.ignore), options))
    if options.other:
        still = {name for name, _ in differences(load(options.other, options.ignore), load(options.b, options.ignore), options)}
        found = [(name, text) for name, text in found if name in still]
    if options.other_layers:
        shows = load(options.b, options.ignore)
        found = [(name, text) for name, text in found if not as_on_disk(name, shows.get(name), options.other_layers.split(":"))]
    lines = [f"{shown(name)}: {text}" for name, text in found]
    for line in lines[:40]:
        print(line)
    if len(lines) > 40:
        print(f"... and {len(lines) - 40} more")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
