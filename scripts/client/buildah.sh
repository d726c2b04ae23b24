# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# buildah: the same work over plyfs, over the kernel's overlay and over fuse-overlayfs.
needs=(buildah runc)

bud() { timeout -k 5 120 buildah "${flags[@]}" "$@"; }

inside() { # CMD...: where the mounts of the store are
    if [ "$mode" = root ]; then "$@"; else bud unshare "$@"; fi
}

# by_hand FILE: from, mount, copy, run, commit; saves what the new image shows.
by_hand() {
    local name
    bud from --name start scratch
    bud add start "$image_tar" /
    bud commit -q start localhost/small:1
    name=$(bud from localhost/small:1)
    inside sh -ec 'at=$(buildah "$@" mount '"$name"'); echo mounted >"$at/data/mounted"; rm -r "$at/vol"; buildah "$@" umount '"$name" sh "${flags[@]}"
    bud copy "$name" "$here/context/added" /data/added
    bud run --isolation chroot "$name" -- sh -ec "$busy"
    bud commit -q "$name" localhost/small:2
    bud rm -a
    shown "$1" localhost/small:2
}

# built FILE: a build of several layers, twice, the second time from the cache.
built() {
    bud bud -q --isolation chroot --layers -t localhost/built "$here/context"
    bud bud --isolation chroot --layers -t localhost/again "$here/context" >"$here/twice"
    same 6 "$(grep -c "Using cache" "$here/twice")"
    shown "$1" localhost/built
}

shown() { # FILE IMAGE
    local name
    name=$(bud from "$2")
    inside sh -ec 'file=$1 name=$2; shift 2
        /usr/bin/python3 "$PLYFS_SCRATCH/scripts/treecmp.py" --save "$file" "$(buildah "$@" mount "$name")"; buildah "$@" umount "$name"' \
        sh "$1" "$name" "${flags[@]}"
    bud rm "$name"
}

context() {
    mkdir -p "$here/context/added/sub"
    printf '%s\n' added | tee "$here/context/added/file" >"$here/context/added/sub/file"
    cat >"$here/context/Containerfile" <<'FILE'
FROM localhost/small:1
COPY added /data/added
RUN rm -r /gone /data/two && mkdir /gone && echo new >/gone/new
RUN mv /moved /else && mv /data/added/file /else/deep/added && ln /else/deep/added /else/link
RUN chown -R 3:4 /data && chmod 2711 /data/sub && ln -s nowhere /data/dangling
RUN rm -r /else/deep && mkdir -m 700 /else/deep && echo end >>/data/one && setfattr -n user.x -v y /data/one || true
RUN mv /gone /moved && rm /data/sub/large && mkfifo /data/sub/large && echo again >/data/two
FILE
}

# done_by STORE [PROGRAM [DRIVER]]: both works there.
done_by() {
    use "$@"
    by_hand "$here/$1.hand"
    built "$here/$1.built"
}

alike() { # WORK STORE [OPTION...]
    equal "$here/$2.$1" "$here/plyfs.$1" "${@:3}"
}

all_removed() {
    use plyfs "$watch/fuse-overlayfs"
    bud rm -a
    nothing_left inside
}

checks() {
    local links=(--without links --ignore data/link) # the kernel parts the names of a file without index=on
    # shellcheck source=scripts/client/store.sh
    . "$scratch/scripts/client/store.sh"
    watched
    context
    check "from, mount, copy, run, commit, bud --layers" done_by plyfs "$watch/fuse-overlayfs"
    check "every mount is silent, detached and ready" quiet_mounts
    check "nothing is left" all_removed
    check "the same over plain copies (vfs)" done_by vfs "" vfs
    check "by hand: the image that plain copies give" alike hand vfs
    check "bud: the image that plain copies give" alike built vfs
    check "the same over the kernel's overlay" done_by kernel
    check "by hand: the image that the kernel's overlay gives" alike hand kernel "${links[@]}"
    check "bud: the image that the kernel's overlay gives" alike built kernel "${links[@]}"
    noted "fuse-overlayfs stops" done_by peer /usr/bin/fuse-overlayfs
    noted "by hand: fuse-overlayfs gives another image" alike hand peer
    [ ! -e "$here/peer.built" ] || noted "bud: fuse-overlayfs gives another image" alike built peer
}
