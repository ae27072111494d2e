#!/bin/bash
# Installs the Debian packages that are missing, if it may; otherwise says which ones they are.
#
# usage: debian-packages.sh SET...
#   venv    Python with venv
#   native  a C compiler and Python's headers, for the optional hashing core
#   peers   the tools that the tests compare with
#
# It never fails for want of a package: what needs the tool says so itself. apt is left alone when nothing
# is missing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
python=${PYTHON:-python3}
missing=()

need() {  # PACKAGE COMMAND...: the package is missing if the command fails
    local package=$1
    shift
    "$@" > /dev/null 2>&1 || missing+=("$package")
}
have() { command -v "$1"; }
has_headers() {
    "$python" -c 'import os, sysconfig as s; os.stat(os.path.join(s.get_path("include"), "Python.h"))'
}
is_debian_python() { "$python" -c 'import sys; sys.exit(sys.base_prefix != "/usr")'; }

for set in "$@"; do
    case $set in
        venv)
            need python3 have python3
            need python3-venv /usr/bin/python3 -c 'import ensurepip, venv; ensurepip.version()'
            ;;
        native)
            need gcc have cc
            need libc6-dev test -e /usr/include/stdio.h
            # Debian's headers fit Debian's interpreter only.
            if is_debian_python > /dev/null 2>&1; then need python3-dev has_headers; fi
            ;;
        peers)
            need erofs-utils have mkfs.erofs
            need erofs-utils have fsck.erofs
            need fsverity have fsverity
            need cryptsetup-bin have veritysetup
            need openssl have openssl
            need attr have setfattr
            need acl have setfacl
            need docker-registry have docker-registry
            need skopeo have skopeo
            need umoci have umoci
            need nginx-light have nginx
            need zstd have zstd
            need xz-utils have xz
            need libarchive-tools have bsdtar
            ;;
        *)
            echo "debian-packages.sh: unknown set $set" >&2
            exit 2
            ;;
    esac
done

[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "eroseal: missing, but not required: ${missing[*]} (apt install ${missing[*]})" >&2
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
install() { apt-get install --yes --quiet --no-install-recommends "$@" < /dev/null; }
echo "eroseal: installing ${missing[*]}" >&2
apt-get update --quiet < /dev/null || echo "eroseal: apt-get update failed, trying with what is known" >&2
# One package that this release does not have must not keep the others out.
install "${missing[@]}" || for package in "${missing[@]}"; do
    install "$package" || echo "eroseal: $package could not be installed" >&2
done
