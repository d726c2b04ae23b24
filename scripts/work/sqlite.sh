# shellcheck shell=bash disable=SC2034,SC2154
# Two writers share a sqlite database in WAL mode and are killed, again and again; after each kill the
# database is whole and holds every row whose commit was acknowledged.
needs=(python3)
options=(--ignore-content 'db*')

lower() { "$python" "$scratch/scripts/work/rows.py" make "$1/db"; }

work() {
    local turn writers pid
    for turn in {1..10}; do
        writers=()
        for name in one two; do
            "$python" "$scratch/scripts/work/rows.py" write "$1/db" "$name" >>"$dir/rows.$name" &
            writers+=($!)
        done
        sleep "0.$((turn * 37 % 60 + 30))"
        for pid in "${writers[@]}"; do
            kill -9 "$pid"
            wait "$pid" 2>/dev/null || true
        done
        "$python" "$scratch/scripts/work/rows.py" check "$1/db" "$dir"/rows.{one,two}
    done
    "$python" "$scratch/scripts/work/rows.py" pack "$1/db"
}

recheck() { "$python" "$scratch/scripts/work/rows.py" check "$1/db" "$dir"/rows.{one,two}; }
