# shellcheck shell=bash disable=SC2034,SC2154
# What apptainer does with fuse-overlayfs: by name, in the foreground, with CAP_SYS_ADMIN of a user namespace; it looks
# at the mount table every 25 ms for 2 s, shows what was said, and after umount waits half a second for the end.
needs=(util-linux)

start() { # WORD...: as $fuse, the words before the target are options
    fuse-overlayfs -f -o "$1" "$dir/view" >"$dir/out" 2>"$dir/err" &
    fuse=$!
    for _ in $(seq 80); do
        sleep 0.025
        if ! kill -0 "$fuse" 2>/dev/null; then break; fi
        if grep -q " $dir/view " /proc/self/mountinfo; then
            same "" "$(cat "$dir/out" "$dir/err")"
            return
        fi
    done
    cat "$dir/err"
    return 1
}

stop() {
    umount -l "$dir/view"
    for _ in $(seq 50); do
        if ! kill -0 "$fuse" 2>/dev/null; then
            wait "$fuse"
            same "" "$(cat "$dir/out" "$dir/err")"
            return
        fi
        sleep 0.01
    done
    return 1
}

# session_of OPTIONS: one run of a container, in the namespaces of the caller.
session_of() {
    start "$1"
    same two "$(cat "$dir/view/data/two")"
    if [[ $1 = *upperdir=* ]]; then
        rm "$(mktemp "$dir/view/usr/bin/.tmpXXXXXX")" # its probe as root
        if [ -e "$dir/view/gone" ]; then rm -r "$dir/view/gone"; else mkdir "$dir/view/gone"; fi
        mv "$dir/view/moved" "$dir/view/else" || mv "$dir/view/else" "$dir/view/moved"
        echo x >"$dir/view/data/new"
        rmdir "$dir/view/vol" && mkdir "$dir/view/vol"
    else
        fails touch "$dir/view/x"
    fi
    stop
}

# thrice DIR: writable, then read-only with what that left as the first layer, then writable again.
thrice() {
    dir=$1
    PATH=$scratch/dropin:$PATH
    mkdir -p "$dir"/{lower,upper,work,view}
    tar -C "$dir/lower" --no-same-owner -xf "$image_tar"
    session_of "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work"
    session_of "lowerdir=$dir/upper:$dir/lower"
    session_of "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work,noacl"
}

# within NAME CMD...: the words of CMD start the namespaces.
within() {
    timeout -k 5 60 "${@:2}" "$scratch/scripts/clients" call apptainer thrice "$here/$1"
}

checks() {
    if [ "$mode" = root ]; then
        check "as root" within root unshare --mount
    else
        check "as oneself with CAP_SYS_ADMIN" within oneself unshare --user --map-current-user --keep-caps --mount
        check "as a root of one id" within one unshare --user --map-root-user --mount
        check "as a root of many ids" within many unshare --user --map-auto --map-root-user --mount
    fi
    [ "$mode" = root ] || left_out "apptainer itself" "the apptainer package"
}
