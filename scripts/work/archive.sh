# shellcheck shell=bash disable=SC2034,SC2154
# tar and rsync carry a tree of everything a tree can hold to the mount and back; nothing may change,
# times of directories and holes included. The lower holds an older version of what rsync updates.
needs=(rsync attr acl libcap2-bin)
options=()

odd() { "$python" "$scratch/scripts/work/oddtree.py" "$@"; }

lower() {
    rm -rf "$dir"/{source,back,tarball}
    mkdir -p "$dir/source" "$1/rsynced" "$1/linked"
    odd old "$1/rsynced"
    odd new "$dir/source"
    find "$1" -maxdepth 1 -exec touch -d @1000000000 {} +
}

# tar leaves sockets out.
tarred() { same --ignore socket "$@"; }
same() { "$python" "$scratch/scripts/treecmp.py" --holes "$@"; }

sync_tree() { timeout 300 rsync -aHAX --sparse --numeric-ids --delete "$@"; }

tar_options=(--format=posix --numeric-owner --xattrs --xattrs-include='*' --acls --sparse --warning=no-timestamp)

work() {
    sync_tree "$dir/source/" "$1/rsynced"
    same "$dir/source" "$1/rsynced"
    mkdir "$1/tarred" "$dir/back" "$dir/back/rsynced" "$dir/back/tarred"
    timeout 300 tar "${tar_options[@]}" -C "$dir/source" -cf "$dir/tarball" .
    timeout 300 tar "${tar_options[@]}" -C "$1/tarred" -xpf "$dir/tarball"
    tarred "$dir/source" "$1/tarred"
    cp -a --sparse=always "$1/rsynced" "$1/copied"
    same --without sparse "$dir/source" "$1/copied"
    sync_tree "$1/tarred/" "$dir/back/rsynced"
    tarred "$dir/source" "$dir/back/rsynced"
    timeout 300 tar "${tar_options[@]}" -C "$1/rsynced" -cf "$1/tarball" .
    timeout 300 tar "${tar_options[@]}" -C "$dir/back/tarred" -xpf "$1/tarball"
    tarred "$dir/source" "$dir/back/tarred"
    rm "$1/tarball"
    touch -d @1000000000 "$1"
}

recheck() {
    same "$dir/source" "$1/rsynced"
    tarred "$dir/source" "$1/tarred"
}
