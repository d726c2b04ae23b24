# shellcheck shell=bash disable=SC2034,SC2154
# pip installs, upgrades and removes packages in a venv. The wheels are fetched once from PyPI.
needs=(python3-venv)
options=(--ignore-content '*.pyc')
wheels=(six==1.16.0 six==1.17.0 idna==3.10 click==8.1.8 PyYAML==6.0.2 requests==2.32.3)
export PYTHONDONTWRITEBYTECODE=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1

prepare() { # CACHE
    local wheel
    [ ! -e "$1/wheels/complete" ] || return 0
    rm -rf "$1/fetch"
    "$python" -m venv "$1/fetch"
    for wheel in "${wheels[@]}"; do
        timeout 300 "$1/fetch/bin/pip" download -q --only-binary :all: --dest "$1/wheels" "$wheel"
    done
    rm -rf "$1/fetch"
    touch "$1/wheels/complete"
}

pip() { # DIR WORD...
    HOME="$1" timeout 300 "$1/venv/bin/python" -m pip "${@:2}"
}

add() { pip "$1" install -q --no-cache-dir --no-index --find-links "$base/cache/wheels" "${@:2}"; }

# The venv holds its own path, so the lower is filled at the mount's.
lower() {
    mount --bind "$1" "$point"
    "$python" -m venv "$point/venv"
    add "$point" six==1.16.0 idna
    umount "$point"
}

work() {
    add "$1" six==1.17.0
    add "$1" click PyYAML requests
    pip "$1" uninstall -q -y click
    pip "$1" check
    "$1/venv/bin/python" -c 'import six, yaml, requests; assert six.__version__ == "1.17.0"'
}

recheck() { pip "$1" check; }
