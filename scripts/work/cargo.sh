# shellcheck shell=bash disable=SC2034,SC2154
# cargo builds a small workspace offline, is idle when nothing changed, and builds again after an edit.
needs=(gcc)
options=(--ignore-content '*/.fingerprint/*' --ignore-content '*/.rustc_info.json' --ignore-content '*/invoked.timestamp'
    --ignore-content '*/root-output' --ignore-content home/.global-cache)

lower() {
    mkdir -p "$1"/{app,part}/src
    printf '[workspace]\nmembers = ["app", "part"]\nresolver = "2"\n' >"$1/Cargo.toml"
    printf '[package]\nname = "app"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\npart = { path = "../part" }\n' >"$1/app/Cargo.toml"
    printf '[package]\nname = "part"\nversion = "1.0.0"\nedition = "2021"\n' >"$1/part/Cargo.toml"
    echo 'fn main() { println!("{}", part::answer()); }' >"$1/app/src/main.rs"
    echo 'include!(concat!(env!("OUT_DIR"), "/answer.rs"));' >"$1/part/src/lib.rs"
    cat >"$1/part/build.rs" <<'EOF'
fn main() {
    println!("cargo:rerun-if-changed=answer.txt");
    let answer = std::fs::read_to_string("answer.txt").unwrap();
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(out + "/answer.rs", format!("pub fn answer() -> u32 {{ {answer} }}")).unwrap();
}
EOF
    echo 41 >"$1/part/answer.txt"
    find "$1" -exec touch -d @1000000000 {} +
}

build() { # DIR
    (cd "$1" && env -u CARGO_TARGET_DIR -u RUSTUP_TOOLCHAIN HOME="$1" CARGO_HOME="$1/home" CARGO_INCREMENTAL=0 \
        PATH="$base/rust/bin:/usr/bin:/bin" timeout 600 cargo build --offline 2>&1)
}

idle() { # DIR
    local said
    said=$(build "$1")
    [[ $said != *Compiling* ]] || { echo "built again: $said" && return 1; }
}

work() {
    build "$1"
    [ "$("$1/target/debug/app")" = 41 ]
    idle "$1"
    sleep 1.1
    echo 42 >"$1/part/answer.txt"
    build "$1"
    [ "$("$1/target/debug/app")" = 42 ]
}

recheck() { idle "$1" && [ "$("$1/target/debug/app")" = 42 ]; }
