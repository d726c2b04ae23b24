#!/usr/bin/env python3
"""oddtree.py old|new DIR: fills DIR with one of everything: links, holes, xattrs, ACLs, times.

`new` differs from `old` in content, names, types and metadata, for an updating copy. Devices are
made only by the host's root.
"""

import os
import random
import socket
import stat
import struct
import sys

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [(1, 6, 0xFFFFFFFF), (2, 7, 1), (4, 4, 0xFFFFFFFF), (8, 5, 2), (0x10, 7, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
)
# cap_net_raw+ep; the kernel adds the root of a user namespace by itself
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def fill(path, rng, size):
    with open(path, "wb") as file:
        file.write(rng.randbytes(size))


def bind(path):
    """A socket; its address must be short, so it is bound from inside its directory."""
    back = os.getcwd()
    os.chdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.basename(path))
    os.chdir(back)


def sparse(path, rng):
    with open(path, "wb") as file:
        file.write(rng.randbytes(8192))
        file.seek(3 << 20)
        file.write(rng.randbytes(8192))
        file.truncate(8 << 20)


def main():
    version, top = sys.argv[1], os.path.abspath(sys.argv[2])
    new, rng = version == "new", random.Random(version)
    real_root = open("/proc/self/uid_map", encoding="ascii").read().split() == ["0", "0", "4294967295"]
    os.umask(0)
    for d in range(6 if new else 5):
        os.mkdir(f"{top}/dir{d}")
        for f in range(12):
            path = f"{top}/dir{d}/file{f}"
            fill(path, random.Random(f"{d} {f} {new and f % 4 == 0}"), 200 * f * (d + 1))
            os.chmod(path, rng.choice([0o644, 0o600, 0o755, 0o444, 0o4755, 0o2711]))
    os.mkdir(f"{top}/dir0/deep" if new else f"{top}/dir0/gone")
    for name in ["sp ace", "new\nline", "\u00e4\u6f22", "\udcff\udcfe", "n" * 255]:
        fill(f"{top}/dir1/{name}", rng, 100)
    fill(f"{top}/links0", rng, 5000)
    for n in range(1, 6):
        os.link(f"{top}/links0", f"{top}/dir{n % 5}/links{n}")
    for name, target in [("good", "dir0/file3"), ("dangling", "no/where"), ("long", "l" * 3000 if new else "l")]:
        os.symlink(target, f"{top}/{name}")
    os.link(f"{top}/good", f"{top}/dir0/good-link", follow_symlinks=False)
    sparse(f"{top}/sparse", rng)
    os.mkfifo(f"{top}/fifo", 0o640)
    bind(f"{top}/socket")
    if new:
        os.mkdir(f"{top}/was-file")
    else:
        fill(f"{top}/was-file", rng, 10)
    if real_root:
        os.mknod(f"{top}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(f"{top}/disk", stat.S_IFBLK | 0o640, os.makedev(7, 200 if new else 201))
        os.setxattr(f"{top}/good", "trusted.link", b"on the link", follow_symlinks=False)
    for path in [f"{top}/dir2", f"{top}/dir2/file5", f"{top}/links0"]:
        os.setxattr(path, "user.text", version.encode())
        os.setxattr(path, "user.bytes", bytes(range(256)))
    os.setxattr(f"{top}/dir3/file4", "user.long", b"x" * 2500)
    os.setxattr(f"{top}/dir3/file6", "system.posix_acl_access", ACL)
    os.setxattr(f"{top}/dir3", "system.posix_acl_default", ACL)
    for number, (base, dirs, files) in enumerate(os.walk(top)):
        for name in sorted(dirs + files):
            os.lchown(f"{base}/{name}", rng.randrange(2000), 1000 + number)
    os.chmod(f"{top}/dir3/file7", 0o4755)
    os.setxattr(f"{top}/dir3/file8", "security.capability", CAPABILITY)
    os.chmod(f"{top}/dir4", 0o3777)
    for base, dirs, files in os.walk(top, topdown=False):
        for name in sorted(dirs + files):
            when = rng.randrange(-1_000_000_000, 978_000_000) * 10**9 + rng.randrange(10**9)
            os.utime(f"{base}/{name}", ns=(when, when), follow_symlinks=False)
    os.utime(top, ns=(10**18 // 2, 10**18 // 2))


if __name__ == "__main__":
    main()
