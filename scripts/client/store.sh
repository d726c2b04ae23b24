# shellcheck shell=bash disable=SC2034,SC2154
# A store of containers/storage, as podman and buildah share it: sourced by their subjects.

dropin=$scratch/dropin/fuse-overlayfs
busy='
    echo new >/data/new; echo more >>/data/one; echo end >>/data/sub/large; rm /data/two
    rm -r /gone; mkdir /gone; echo z >/gone/z
    mv /moved /else; echo in >/else/deep/in; chmod 4700 /data/setuid; chown 7:8 /owned; ln -s z /gone/s'

# use STORE [PROGRAM [DRIVER]]: names a store in $flags, without a program one of the kernel's overlay. Every
# store has a home of its own: podman keeps there which driver it was made with.
use() {
    local at=$here/$1 driver=${3:-overlay}
    export HOME=$at/home XDG_RUNTIME_DIR=$at/xdg CONTAINERS_CONF=$here/containers.conf CONTAINERS_STORAGE_CONF=$at/storage.conf
    mkdir -p "$HOME" "$XDG_RUNTIME_DIR"
    chmod 700 "$XDG_RUNTIME_DIR"
    printf '%s\n' '[containers]' 'default_ulimits=["nofile=1024:1024", "nproc=1024:1024"]' '[engine]' 'cgroup_manager="cgroupfs"' \
        'events_logger="file"' 'runtime="runc"' >"$CONTAINERS_CONF"
    printf '%s\n' '[storage]' "driver=\"$driver\"" "graphroot=\"$at/root\"" "runroot=\"$at/run\"" >"$CONTAINERS_STORAGE_CONF"
    flags=(--root "$at/root" --runroot "$at/run" --storage-driver "$driver")
    [ -z "${2:-}" ] || flags+=(--storage-opt "overlay.mount_program=$2")
}

# watched: makes $watch/fuse-overlayfs, which calls the drop-in and notes in $watch/calls what a caller
# sees: the status, the filesystem that answers, and what was said. It waits for the end of both streams.
watched() {
    watch=$here/watched
    mkdir -p "$watch"
    cat >"$watch/fuse-overlayfs" <<WATCH
#!/bin/bash
status=0
said=\$("$dropin" "\$@" 2>&1) || status=\$?
[[ \$1 != --version ]] || { echo "\$said" && exit; }
echo "\$status \$(stat -fc %T "\${@: -1}" 2>&1) '\$said'" >>"$watch/calls"
exit "\$status"
WATCH
    chmod +x "$watch/fuse-overlayfs"
}

quiet_mounts() {
    cat "$watch/calls"
    [ "$(wc -l <"$watch/calls")" -ge 3 ]
    fails grep -vxE "0 fuse(blk)? ''" "$watch/calls"
}

# nothing_left CMD...: no daemon of this subject, and no mount where CMD looks.
nothing_left() {
    local left
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        left=$(daemons)
        [ -n "$left" ] || break
        sleep 0.5
    done
    same "" "$left"
    same "" "$("$@" grep "^fuse-overlayfs $here/" /proc/mounts || true)"
}
