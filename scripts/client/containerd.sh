# shellcheck shell=bash disable=SC2034,SC2154
# containerd mounts the type fuse3.fuse-overlayfs by libfuse's helper, which finds the program on the path; then a
# container over such a mount. Its own snapshotter for fuse-overlayfs is not in Debian.
needs=(containerd runc fuse3) modes="root rootless"

fresh() { # NAME: sets $dir and $list
    dir=$here/$1
    list="upperdir=$dir/upper,workdir=$dir/work"
    mkdir -p "$dir"/{upper,work,view}
    [ -e "$here/lower" ] || { mkdir "$here/lower" && tar -C "$here/lower" --numeric-owner -xpf "$image_tar"; }
}

# mounted CMD...: mounts in silence, at once ready, by a daemon that keeps no stream; then it goes with umount.
mounted() {
    local said
    said=$(timeout -k 5 30 "$@" 2>&1) || { echo "$said" && return 1; }
    same "" "$said"
    same "fuse-overlayfs fuse.fuse-overlayfs" "$(findmnt -no SOURCE,FSTYPE "$dir/view" | tr -s ' ')"
    same two "$(cat "$dir/view/data/two")"
    rm -r "$dir/view/gone"
    mkdir "$dir/view/gone"
    same "" "$(ls -A "$dir/view/gone")"
    umount "$dir/view"
    same "" "$(grep "$dir/" /proc/mounts || true)"
    mount_again
    same "" "$(ls -A "$dir/view/gone")"
    umount "$dir/view"
}

mount_again() { "$scratch/dropin/fuse-overlayfs" -o "lowerdir=$here/lower,$list" "$dir/view"; }

# typed HERE: mount(8) gives its helper a path of its own, so the program stands where the package's does. With the
# type fuse3.fuse-overlayfs, which mount(8) passes on whole, libfuse looks for a program of that name and has none.
typed() {
    here=$1
    fresh typed
    mount --bind "$PLYFS" /usr/bin/fuse-overlayfs
    mounted mount -t fuse.fuse-overlayfs fuse-overlayfs "$dir/view" -o "lowerdir=$here/lower,$list"
    mounted mount -t fuse "fuse-overlayfs#" "$dir/view" -o "lowerdir=$here/lower,$list"
}

as_containerd() {
    fresh as-containerd
    mounted mount.fuse3 overlay "$dir/view" -o "upperdir=$dir/upper" -o "workdir=$dir/work" -o "lowerdir=$here/lower" -t fuse-overlayfs
}

hashed() { fresh hashed && mounted mount.fuse3 "fuse-overlayfs#" "$dir/view" -o "lowerdir=$here/lower,$list"; }

read_only() {
    fresh read-only
    same "" "$(mount.fuse3 overlay "$dir/view" -o ro -o "lowerdir=$dir/upper:$here/lower" -t fuse-overlayfs 2>&1)"
    same two "$(cat "$dir/view/data/two")"
    fails touch "$dir/view/x"
    umount "$dir/view"
}

refused() {
    local status=0
    fresh refused
    mount.fuse3 overlay "$dir/view" -o "lowerdir=$here/nothing" -t fuse-overlayfs 2>"$dir/said" || status=$?
    [ "$status" != 0 ]
    grep "$here/nothing" "$dir/said"
    fails findmnt "$dir/view"
}

daemon_up() {
    local s=$here/c
    mkdir -p "$s"
    printf '%s\n' 'version = 2' "root = \"$s/root\"" "state = \"$s/state\"" 'disabled_plugins = ["io.containerd.grpc.v1.cri"]' \
        '[grpc]' "address = \"$s/sock\"" '[ttrpc]' "address = \"$s/ttrpc\"" >"$s/config.toml"
    containerd -c "$s/config.toml" >"$s/log" 2>&1 &
    echo $! >"$s/pid"
    for _ in $(seq 100); do
        if timeout 5 ctr -a "$s/sock" version >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    tail -n 5 "$s/log"
    return 1
}

ctr_run() { # ID CMD...
    timeout -k 5 60 ctr -a "$here/c/sock" run --rm --cgroup "/$PLYFS_CGROUP/$1" --rootfs "$dir/view" "$1" "${@:2}"
}

containers() {
    fresh run
    mount_again
    same "fuse.fuse-overlayfs" "$(ctr_run first /bin/sh -c 'grep " / " /proc/mounts | cut -d" " -f3')"
    ctr_run second /bin/sh -ec 'rm -r /gone /data/two; mkdir /gone; echo z >/gone/z; mv /moved /else; chown 5:6 /owned'
    same "$(printf 'z\ndeep')" "$(ctr_run third /bin/cat /gone/z /else/deep/file)"
    same "z 5:6" "$(ls "$dir/view/gone") $(stat -c %u:%g "$dir/view/owned")"
    fails ls "$dir/view/data/two"
    fails ls "$dir/view/moved"
    umount "$dir/view"
    mount -t overlay overlay -o "lowerdir=$here/lower,$list" "$dir/view" # and so does the kernel
    same "z 5:6" "$(ls "$dir/view/gone") $(stat -c %u:%g "$dir/view/owned")"
    fails ls "$dir/view/data/two"
    fails ls "$dir/view/moved"
    umount "$dir/view"
}

checks() {
    PATH=$scratch/dropin:$PATH
    check "mount -t fuse.fuse-overlayfs" unshare --mount "$scratch/scripts/clients" call containerd typed "$here"
    check "mount.fuse3 as containerd calls it" as_containerd
    check "mount.fuse3 with program#" hashed
    check "mount.fuse3 without upper" read_only
    check "mount.fuse3 says why it failed" refused
    if [ "$mode" = root ]; then
        check "containerd starts" daemon_up
        check "containers over such a mount" containers
        if [ -s "$here/c/pid" ]; then kill "$(<"$here/c/pid")"; fi
    fi
    [ "$mode" = root ] || left_out "containerd mounting by itself" "containerd-fuse-overlayfs-snapshotter"
}
