# shellcheck shell=bash
# The verbs that the scripts share: packages, a scratch directory, private sessions, mounts.
#
# Whatever a script mounts or starts lives in the mount and process namespaces of its session and
# ends with it, however the session ends. What is left outside is the scratch directory and the
# ordinary user `plyfs-test`; the trap of `session` removes both.

repo=${PLYFS_REPO:-$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)}
target=${CARGO_TARGET_DIR:-$repo/target}
cache=$target/scripts
mode=${PLYFS_MODE:-$([ "$(id -u)" = 0 ] && echo root || echo user)} # root, rootless or user
test_user='plyfs-test'
limit=7200 # seconds that a session or a part of it may take
stage=()   # programs that the session finds in $scratch/bin
own_base=1 # the session gets $base
user_mark='made by the scripts of plyfs'

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

skipped() { # WHAT CAPABILITY
    echo "skipped: $1: needs $2"
}

have() { command -v "$1" >/dev/null; }

# finish PASSED FAILED SKIPPED: the last line of every suite; fails when something failed.
finish() {
    printf '%d passed, %d failed' "$1" "$2"
    if [ "$3" -gt 0 ]; then printf ', %d skipped' "$3"; fi
    echo
    [ "$2" = 0 ]
}

# packages NAME...: installs the missing ones as root on Debian; otherwise names them.
packages() {
    local name missing=()
    have dpkg-query || return 0
    for name in "$@"; do
        [ "$(dpkg-query -Wf '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$mode" = root ]; then
        timeout 300 apt-get -qq update || true
        DEBIAN_FRONTEND=noninteractive timeout 900 apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    else
        skipped "installing ${missing[*]}" "root"
    fi
}

# fuse_device: /dev/fuse exists and opens; ordinary users may open it too when root asks.
fuse_device() {
    if [ "$mode" = root ]; then
        [ -c /dev/fuse ] || mknod /dev/fuse c 10 229 || true
        [ ! -c /dev/fuse ] || chmod 0666 /dev/fuse || true
    fi
    [ -r /dev/fuse ] && [ -w /dev/fuse ]
}

# plyfs_binary: sets $plyfs to a release build, or to what PLYFS names.
plyfs_binary() {
    plyfs=${PLYFS:-$target/release/plyfs}
    [ -n "${PLYFS:-}" ] || (cd "$repo" && timeout 1500 cargo build --quiet --release --bin plyfs) || return 1
    [ -x "$plyfs" ]
}

# programs: the debug test programs, built where they are not yet.
programs() {
    cargo test --workspace --all-features --no-run --message-format=json 2>/dev/null </dev/null |
        sed -n '/"overflow_checks":[a-z]*,"test":true/s/.*"executable":"\([^"]*\)".*/\1/p'
}

# ordinary_user: makes $test_user with subordinate ids; true when root can run things as it.
# The lock is shared by every script that uses the account; the last one out removes it.
ordinary_user() {
    [ "$mode" = root ] || return 0
    mkdir -p /run/lock
    exec {user_lock}>/run/lock/plyfs-test-user
    flock -s "$user_lock"
    if ! id "$test_user" >/dev/null 2>&1; then
        groupdel "$test_user" 2>/dev/null || true # what an interrupted removal leaves
        useradd --no-create-home --home-dir /nonexistent --shell /bin/sh --comment "$user_mark" "$test_user" || return 1
    fi
    grep -q "^$test_user:" /etc/subuid 2>/dev/null ||
        usermod --add-subuids 2000000000-2000065535 --add-subgids 2000000000-2000065535 "$test_user"
}

remove_user() {
    [ -n "${user_lock:-}" ] && flock -xn "$user_lock" || return 0
    [ "$(getent passwd "$test_user" | cut -d: -f5)" = "$user_mark" ] || return 0
    for _ in 1 2 3 4 5; do
        if userdel "$test_user" 2>/dev/null; then
            rm -f /run/lock/plyfs-test-user
            return 0
        fi
        sleep 1
    done
}

# rings: as root the kernel offers FUSE over io_uring as long as scripts run that ask for it. True when
# it does. The lock is shared; the last one out puts things back as they were.
rings_knob=/sys/module/fuse/parameters/enable_uring
rings_lock_file=/run/lock/plyfs-rings
rings() {
    [ -r "$rings_knob" ] || return 1
    if [ "$mode" = root ] && [ -z "${PLYFS_SCRATCH:-}" ]; then
        mkdir -p /run/lock
        exec {rings_lock}>>"$rings_lock_file"
        flock -s "$rings_lock"
        if [ "$(cat "$rings_knob")" = N ] && echo Y 2>/dev/null >"$rings_knob"; then echo N >"$rings_lock_file"; fi
    fi
    [ "$(cat "$rings_knob")" = Y ]
}

rings_back() {
    [ -n "${rings_lock:-}" ] && flock -xn "$rings_lock" || return 0
    [ ! -s "$rings_lock_file" ] || cat "$rings_lock_file" >"$rings_knob"
    rm -f "$rings_lock_file"
}

# contained CMD...: with private mounts and processes, which end with CMD.
contained() {
    timeout -k 10 "$limit" unshare --mount --propagation private --pid --fork --kill-child --mount-proc "$@"
}

# as_user CMD...: as the ordinary user, in a clean environment.
as_user() {
    local clean=(env -i "HOME=$scratch/home" "PATH=$PATH" "TMPDIR=$base/tmp" "XDG_RUNTIME_DIR=$scratch/home" "LANG=C.UTF-8" "PYTHONDONTWRITEBYTECODE=1"
        "PLYFS_SCRATCH=$scratch" "PLYFS_REPO=$repo" "PLYFS_BASE=${base:-}" "PLYFS=${PLYFS:-}" "PLYFS_MODE=${PLYFS_MODE:-user}")
    if [ "$mode" = root ]; then
        setpriv --reuid "$test_user" --regid "$test_user" --init-groups "${clean[@]}" "$@"
    else
        "${clean[@]}" "$@"
    fi
}

# rootless CMD...: as the ordinary user, root of a user namespace that holds all his ids.
rootless() {
    PLYFS_MODE=rootless as_user timeout -k 10 "$limit" unshare --user --map-auto --map-root-user --mount --pid --fork --kill-child --mount-proc "$@"
}

can_rootless() { limit=60 rootless true 2>/dev/null; }

# session "$@": a script calls it first. Outside it makes $scratch (bin, scripts, home, tmp), runs the
# script again inside private namespaces, cleans up and exits with its status. Inside it returns, with
# $base an ext4 filesystem where a loop device can be had, a plain directory otherwise.
session() {
    scratch=${PLYFS_SCRATCH:-}
    if [ -n "$scratch" ]; then
        base=${PLYFS_BASE:-}
        [ -n "$base" ] || [ -z "$own_base" ] || base_directory
        return
    fi
    scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/plyfs.XXXXXX")
    trap end_session EXIT
    trap 'exit 129' HUP INT TERM
    mkdir -p "$scratch"/{bin,dropin,home,ext4} "$cache"
    chmod 755 "$scratch"
    chmod 700 "$scratch/home"
    if [ "$mode" = root ] && id "$test_user" >/dev/null 2>&1; then chown "$test_user:" "$scratch/home"; fi
    cp -r "$repo/scripts" "$scratch/scripts"
    [ ${#stage[@]} = 0 ] || install -m 755 "${stage[@]}" "$scratch/bin"
    if [ -n "${plyfs:-}" ]; then
        install -m 755 "$plyfs" "$scratch/bin/plyfs"
        ln -s ../bin/plyfs "$scratch/dropin/fuse-overlayfs"
    fi
    export PLYFS_SCRATCH=$scratch PLYFS_REPO=$repo PLYFS=${plyfs:+$scratch/bin/plyfs} PYTHONDONTWRITEBYTECODE=1
    local inside=("$scratch/scripts/$(basename "$0")" "$@") status=0
    # Behind the script, which waits: a signal ends a wait at once, but not a program in front.
    if [ "$mode" != root ]; then
        "${inside[@]}" <&0 &
    elif contained true 2>/dev/null; then
        contained "${inside[@]}" <&0 &
    fi
    inner=${!:-}
    if [ -n "$inner" ]; then
        trap 'stop_session; exit 129' HUP INT TERM
        wait "$inner" || status=$?
    else
        skipped "$(basename "$0")" "private namespaces (CAP_SYS_ADMIN)"
        finish 0 0 1
    fi
    exit "$status"
}

# remove PATH...: also what belongs to the subordinate ids of the caller.
remove() {
    if [ "$mode" = root ] || ! unshare --user --map-auto --map-root-user rm -rf "$@" 2>/dev/null; then rm -rf "$@"; fi
}

# stop_session: as root the parents of its namespaces are ended, with which everything in them goes.
stop_session() {
    if [ "$mode" = root ]; then
        pgrep -f "^unshare .*$scratch/scripts/" | xargs -r kill -s KILL 2>/dev/null || true
    else
        pgrep -P "$inner" | xargs -r kill 2>/dev/null || true
    fi
    wait "$inner" || true
}

# end_session: what a script's own `after_session` undoes comes first.
end_session() {
    if declare -F after_session >/dev/null; then after_session || true; fi
    remove "$scratch" || true
    remove_user
    rings_back || true
}

# shellcheck source=scripts/mounts.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/mounts.sh"
