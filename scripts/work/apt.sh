# shellcheck shell=bash disable=SC2034,SC2154
# apt-get installs and purges a few packages in a chroot of a Debian minbase. The packages are
# fetched once, with the mirror and the proxy of the host.
needs=(mmdebstrap)
options=(--ignore-content 'var/log/*' --ignore-content 'var/cache/ldconfig/aux-cache' --ignore-content 'var/cache/apt/*.bin')
install=(less ed file rsync)

prepare() { # CACHE
    local suite mirror proxy
    [ ! -s "$1/minbase.tar" ] || return 0
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format "\$(REPO_URI) \$(RELEASE)" 'Created-By: Packages' |
        awk -v suite="$suite" '$2 == suite && !seen { print $1; seen = 1 }')
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    timeout 1200 mmdebstrap --quiet --variant=minbase --skip=cleanup/apt \
        ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\""} \
        --customize-hook="APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG apt-get -qq -y --no-install-recommends --download-only install ${install[*]}" \
        "$suite" "$1/minbase-new.tar" ${mirror:+"$mirror"}
    mv "$1/minbase-new.tar" "$1/minbase.tar"
}

lower() { tar -C "$1" --exclude='./dev/*' --numeric-owner -xpf "$base/cache/minbase.tar"; }

inside() { # DIR CMD...
    timeout 900 chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
        DEBIAN_FRONTEND=noninteractive "${@:2}"
}

devices() { # DIR: a /dev and a /proc that leave no trace in the tree
    local name
    mount -t tmpfs -o mode=755 tmpfs "$1/dev"
    for name in null zero full random urandom tty; do
        touch "$1/dev/$name"
        mount --bind "/dev/$name" "$1/dev/$name"
    done
    mount -t proc proc "$1/proc"
}

work() {
    local apt=(apt-get -y --no-download --no-install-recommends -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root)
    devices "$1"
    inside "$1" "${apt[@]}" install "${install[@]}"
    inside "$1" dpkg --verify
    inside "$1" less --version
    inside "$1" "${apt[@]}" purge ed
    inside "$1" useradd -m somebody
    inside "$1" ldconfig
    umount -R "$1/dev" "$1/proc"
}

recheck() {
    devices "$1"
    inside "$1" dpkg --verify
    inside "$1" apt-get check
    umount -R "$1/dev" "$1/proc"
}
