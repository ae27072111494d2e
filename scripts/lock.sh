#!/bin/bash
# Regenerates requirements.lock (run time and build backend) and requirements-dev.lock (everything the tests
# need) from pyproject.toml. The locks hold versions, environment markers and hashes of all platforms, and
# no address: pip installs them from whatever index it is configured for, and refuses any other bytes.
#
# usage: scripts/lock.sh [--upgrade]      keeps the locked versions unless told to upgrade
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${EROSEAL_VENV:-.venv}
uv=$(command -v "$venv/bin/uv" || command -v uv) || {
    "$venv/bin/python" -m pip install --quiet uv
    uv=$venv/bin/uv
}
compile() {  # OUTPUT [OPTION...]
    local output=$1
    shift
    echo "setuptools>=77" | "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command scripts/lock.sh \
        --output-file "$output" "$@" pyproject.toml - > /dev/null
}
compile requirements.lock "$@"
compile requirements-dev.lock --extra dev --constraint requirements.lock "$@"

if grep -nE '[a-z]+://' requirements.lock requirements-dev.lock; then
    echo "lock.sh: a lock file names an address" >&2
    exit 1
fi
