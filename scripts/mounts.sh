# shellcheck shell=bash disable=SC2154
# Where the scripts mount what: sourced by lib.sh.

# base_directory: sets $base, with a directory of the ordinary user in it.
base_directory() {
    base=$scratch/ext4
    if [ "$mode" = root ]; then
        truncate -s 16G "$scratch/ext4.img"
        if ! { mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$scratch/ext4.img" && mount -o loop "$scratch/ext4.img" "$base"; } 2>/dev/null; then
            rm -f "$scratch/ext4.img"
            skipped "an own ext4 for the tests" "loop devices; $base is on $(stat -fc %T "$base")"
        fi
        if id "$test_user" >/dev/null 2>&1; then install -d -o "$test_user" -g "$test_user" "$base/user"; fi
    fi
    mkdir -p "$base"/{user,root,tmp}
    chmod 1777 "$base/tmp"
    export PLYFS_BASE=$base
}

# place NAME: a fresh directory for one mount, with lower, upper and work in it; prints its path.
place() {
    local dir=$base/root/$1
    [ "$mode" = root ] || dir=$base/user/$1
    mkdir -p "$dir"/{lower,upper,work}
    echo "$dir"
}

# mount_fs KIND DIR [OPTION...]: shows DIR/lower under DIR/upper at $point; `ext4` binds DIR/upper.
# $lowers replaces DIR/lower by a list. The point is /mnt: the same path for every filesystem, and
# short enough for a socket's name; a session has it for itself.
point=/mnt
mount_fs() {
    local kind=$1 dir=$2 option list
    shift 2
    list="lowerdir=${lowers:-$dir/lower},upperdir=$dir/upper,workdir=$dir/work"
    if [ "$kind" = kernel ] && [ "$mode" != root ]; then list+=,userxattr; fi
    for option in "$@"; do list+=,$option; done
    case $kind in
        ext4) mount --bind "$dir/upper" "$point" ;;
        kernel) mount -t overlay overlay -o "$list" "$point" ;;
        fuse-overlayfs) timeout 60 /usr/bin/fuse-overlayfs -o "$list" "$point" ;;
        plyfs) timeout 60 "$PLYFS" mount -o "$list" "$point" ;;
        dropin) timeout 60 "$scratch/dropin/fuse-overlayfs" -o "$list" "$point" ;;
        *) die "mount: $kind: no such filesystem" ;;
    esac
}

unmount_fs() { timeout 60 umount "$point" || umount -l "$point"; }
