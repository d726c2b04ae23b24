# shellcheck shell=bash disable=SC2034,SC2154
# git commits, clones (by links and by packs), switches, merges and packs; its status stays clean.
needs=(git)
options=(--ignore 'packed/.git/objects/pack/*' --ignore 'linked/.git/objects/pack/*' --ignore-content '*/index' --ignore-content '*/logs/*')
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null HOME=/nonexistent
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
export GIT_AUTHOR_DATE='2001-01-01T00:00:00Z' GIT_COMMITTER_DATE='2001-01-01T00:00:00Z'

git_in() { timeout 300 git -c pack.threads=1 -c gc.auto=0 -C "$@"; }

lower() {
    local n m
    git_in "$1" init -q -b main repo
    for n in {1..30}; do
        for m in {1..5}; do
            mkdir -p "$1/repo/dir$m/sub$((n % 4))"
            seq "$((n * m))" "$((n * m + 200))" >"$1/repo/dir$m/sub$((n % 4))/file$((n % 9))"
        done
        [ "$n" != 7 ] || ln -s dir1 "$1/repo/link"
        git_in "$1/repo" add -A
        git_in "$1/repo" commit -q -m "commit $n"
    done
    git_in "$1/repo" branch old HEAD~12
}

clean() { # REPO
    local found
    found=$(git_in "$1" status --porcelain)
    [ -z "$found" ] || { echo "$1: status: $found" && return 1; }
    git_in "$1" fsck --strict
}

work() {
    git_in "$1/repo" status
    clean "$1/repo"
    git_in "$1" clone -q --no-local repo packed
    git_in "$1" clone -q packed linked
    if [ "$kind" != kernel ]; then # the kernel parts the links of a lower, and git refuses such a clone
        git_in "$1" clone -q repo from-lower
        clean "$1/from-lower"
        rm -rf "$1/from-lower"
    fi
    git_in "$1/repo" switch -q old
    echo changed >"$1/repo/dir1/new"
    git_in "$1/repo" add -A
    git_in "$1/repo" commit -q -m "on old"
    git_in "$1/repo" switch -q main
    git_in "$1/repo" merge -q -m merge old
    mv "$1/repo/dir2" "$1/repo/moved" # copies where the filesystem does not rename directories
    git_in "$1/repo" add -A
    git_in "$1/repo" commit -q -m move
    git_in "$1/repo" worktree add -q ../tree old
    git_in "$1/repo" gc -q
    git_in "$1/packed" pull -q
    git_in "$1/linked" pull -q
    for name in repo linked packed tree; do clean "$1/$name"; done
}

recheck() { for name in repo linked packed tree; do clean "$1/$name"; done; }
