#!/bin/bash
# Prints the interpreter to build the virtual environment with: $EROSEAL_PYTHON, or the first Python 3.11 or
# later that can make one. Each candidate is run, because a shim on PATH may stand for nothing.
set -euo pipefail

usable() { "$1" -c 'import ensurepip, sys, venv; ensurepip.version(); sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in "${EROSEAL_PYTHON:-}" python3 python3.1{1,2,3,4,5} /usr/bin/python3; do
        if [ -n "$candidate" ] && usable "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        # A choice that does not work is an error, not a reason to take another one.
        if [ -n "$candidate" ] && [ "$candidate" = "${EROSEAL_PYTHON:-}" ]; then
            echo "eroseal: EROSEAL_PYTHON=$candidate is not a Python 3.11 or later with venv" >&2
            exit 1
        fi
    done
    return 1
}

find_python && exit
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    "$(dirname "$0")/debian-packages.sh" venv >&2
    find_python && exit
fi
echo "eroseal: no Python 3.11 or later with venv found; on Debian and Ubuntu: apt install python3-venv" >&2
exit 1
