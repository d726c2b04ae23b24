# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# podman, its store on plyfs by mount_program.
needs=(podman runc catatonit slirp4netns)

pod() { timeout -k 5 120 podman "${flags[@]}" "$@"; }

run() { # OPTION... IMAGE CMD...
    local cgroup=()
    [ "$mode" != root ] || cgroup=(--cgroup-parent "/$PLYFS_CGROUP")
    pod run --network=none "${cgroup[@]}" "$@"
}

# inside CMD...: where the mounts of the store are.
inside() {
    if [ "$mode" = root ]; then "$@"; else pod unshare "$@"; fi
}

# shown FILE KIND NAME: saves what a container, or an image, shows.
shown() {
    local at kind=()
    [ "$2" = container ] || kind=(image)
    at=$(inside podman "${flags[@]}" "${kind[@]}" mount "$3")
    inside /usr/bin/python3 "$scratch/scripts/treecmp.py" --save "$1" "$at"
    inside podman "${flags[@]}" "${kind[@]}" umount "$3"
}

imported() {
    pod import -q "$image_tar" localhost/small:1
}

version_shown() {
    pod info --format '{{json .Store.GraphOptions}}' | tee /dev/stderr | grep -q 'fuse-overlayfs: version [0-9]*\.[0-9]'
}

root_is_fuse() {
    same "fuse-overlayfs / fuse.fuse-overlayfs" "$(run --rm localhost/small:1 sh -c 'grep " / " /proc/mounts | cut -d" " -f1-3')"
}

image_shows_the_tar() {
    local plain=$here/plain
    inside sh -ec "mkdir $plain; tar -C $plain --xattrs --numeric-owner -xpf $image_tar; touch $plain; chmod 555 $plain"
    shown "$here/image" image localhost/small:1
    inside /usr/bin/python3 "$scratch/scripts/treecmp.py" --save "$here/plain.json" "$plain"
    inside rm -rf "$plain"
    equal "$here/plain.json" "$here/image"
}

work_inside() {
    local at
    run --name work localhost/small:1 sh -ec "$busy"
    at=$(inside podman "${flags[@]}" mount work)
    same "$(printf '%s\n' end in deep z)" "$(inside tail -qn 1 "$at/data/sub/large" "$at/else/deep/in" "$at/else/deep/file" "$at/gone/z")"
    fails inside ls -d "$at/data/two"
    fails inside ls -d "$at/gone/a"
    fails inside ls -d "$at/moved"
    inside podman "${flags[@]}" umount work
}

diff_lists_the_work() {
    local listed
    listed=$(pod diff work | grep -vE ' /(etc|run|dev|proc|sys)(/|$)' | LC_ALL=C sort)
    same "$(printf '%s\n' 'A /data/new' 'A /else' 'A /else/deep' 'A /else/deep/file' 'A /else/deep/in' 'A /gone/s' 'A /gone/z' 'C /data' \
        'C /data/link' 'C /data/one' 'C /data/setuid' 'C /data/sub' 'C /data/sub/large' 'C /gone' 'C /owned' 'D /data/two' 'D /gone/a' \
        'D /gone/b' 'D /moved' | LC_ALL=C sort)" "$listed"
}

commit_keeps_the_work() {
    pod commit -q work localhost/small:2
    shown "$here/work" container work
    shown "$here/committed" image localhost/small:2
    equal "$here/work" "$here/committed" --ignore 'etc/*' --ignore run --ignore dev --ignore proc --ignore sys
    same "$(printf 'one\nmore\nz\nin')" "$(run --rm localhost/small:2 cat /data/one /gone/z /else/deep/in)"
}

read_only() {
    same "ro refused" "$(run --rm --read-only localhost/small:1 sh -c \
        'grep " / " /proc/mounts | cut -d" " -f4 | cut -d, -f1 | tr "\n" " "; echo x >/tmp/x; if echo x 2>/dev/null >/data/one; then echo written; else echo refused; fi')"
}

overlay_volume() {
    local vol=$here/volume
    mkdir -p "$vol/sub"
    echo kept | tee "$vol/file" >"$vol/sub/file"
    same "$(printf 'fuse.fuse-overlayfs\nkeptmore\nsub2')" "$(run --rm -v "$vol:/vol:O" localhost/small:1 sh -ec \
        'cd /vol; grep " /vol " /proc/mounts | cut -d" " -f3; echo more >>file; tr -d "\n" <file; echo; mv sub sub2; rm sub2/file; ls -d sub*')"
    same "$(printf 'kept\nkept\n.\n./file\n./sub\n./sub/file')" "$(cat "$vol/file" "$vol/sub/file" && cd "$vol" && find . | LC_ALL=C sort)"
}

# shifted OPTION...: the daemon maps the ids, and owners are those that fuse-overlayfs shows.
shifted() {
    local here_shown there_shown
    here_shown=$(shifted_by "$@")
    use peer /usr/bin/fuse-overlayfs
    imported >&2
    there_shown=$(shifted_by "$@")
    stopped
    same "$there_shown" "$here_shown"
}

shifted_by() { # OPTION...: prints owners as the container and the upper directory have them
    run -d --name shifted "$@" localhost/small:1 sh -c 'touch /tmp/mine; sleep 100' >&2
    cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -aq uidmapping=
    pod exec --user 0 shifted sh -ec 'rm -r /gone; mv /moved /else; chown 5:6 /else/deep/file'
    pod exec --user 0 shifted stat -c '%u:%g %a %n' /data /data/one /owned/file /tmp/mine /else/deep /else/deep/file
    pod rm -f -t 0 shifted >&2
}

saved_and_loaded() {
    pod save -q -o "$here/saved.tar" localhost/small:2
    use other "$dropin"
    pod load -q -i "$here/saved.tar"
    shown "$here/loaded" image localhost/small:2
    equal "$here/committed" "$here/loaded"
    stopped
}

# driven_by PROGRAM: the shared store with that program, or with the kernel's overlay. podman notes that a store
# had a program; without the note it looks for marks that only a program reads, and so finds that there are none.
driven_by() {
    use shared "$1"
    [ -n "$1" ] || rm -f "$here/shared/root/overlay/.has-mount-program"
}

# handed_over FIRST SECOND: a container made with program FIRST is read, run and committed with SECOND. Writes to a
# hard link of the image stay out of it: the kernel parts the names without index=on.
handed_over() {
    local type=fuse.fuse-overlayfs
    [ -n "$2" ] || type=overlay
    driven_by "$1"
    imported
    run --name work localhost/small:1 sh -ec "${busy/'echo more >>/data/one;'/}"
    shown "$here/first" container work
    driven_by "$2"
    shown "$here/second" container work
    equal "$here/first" "$here/second"
    same "$type" "$(run --name again localhost/small:1 sh -ec 'mv /moved /else; rm -r /gone; grep " / " /proc/mounts | cut -d" " -f3')"
    pod commit -q work localhost/small:2
    shown "$here/committed" image localhost/small:2
    equal "$here/first" "$here/committed" --ignore 'etc/*' --ignore run --ignore dev --ignore proc --ignore sys
    shown "$here/second" container again
    driven_by "$dropin"
    shown "$here/first" container again
    equal "$here/first" "$here/second"
    pod rm -a -f -t 0
    pod rmi -a -f
    stopped
}

# stopped: ends podman's own helper of this home.
stopped() { pod system migrate; }

all_removed() {
    pod rm -a -f -t 0
    nothing_left inside
    stopped
}

checks() {
    # shellcheck source=scripts/client/store.sh
    . "$scratch/scripts/client/store.sh"
    watched
    use main "$dropin"
    check "info shows the version line" version_shown
    check "import" imported
    check "an image shows what its tar holds" image_shows_the_tar
    check "the root of a container is fuse.fuse-overlayfs" root_is_fuse
    check "writes, deletions, an opaque directory, a rename" work_inside
    check "diff lists that work" diff_lists_the_work
    check "commit keeps that work" commit_keeps_the_work
    check "--read-only" read_only
    check "a volume of its own layer (:O)" overlay_volume
    check "--uidmap" shifted --uidmap 0:1:2000 --gidmap 0:1:2000
    [ "$mode" = root ] || check "--userns=keep-id" shifted --userns=keep-id
    check "save and load" saved_and_loaded
    use main "$watch/fuse-overlayfs"
    check "the same with every call watched" watched_work
    check "every mount is silent, detached and ready" quiet_mounts
    check "nothing is left after rm -a" all_removed
    check "the kernel's overlay takes over the store" handed_over "$dropin" ""
    check "takes over a store of the kernel's overlay" handed_over "" "$dropin"
}

watched_work() {
    run --rm localhost/small:1 sh -ec "$busy"
    run --rm -v "$here/volume:/vol:O" localhost/small:2 touch /vol/file
    run --rm --read-only localhost/small:2 true
}
