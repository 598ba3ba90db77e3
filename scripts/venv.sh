#!/bin/sh
# Makes .venv with Python 3.11 or newer and installs this checkout into it, with all that the tests need.
# PYTHON=/path/to/python chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
venv=.venv

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
usable() { recent "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

find_python() {
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if recent "$name"; then
            command -v "$name"
            return
        fi
    done
}

create() { # with its own pip; Debian and Ubuntu keep that in a package of its own, whose absence leaves half a venv
    rm -rf "$venv"
    "$1" -m venv "$venv" >/dev/null 2>&1 && usable
}

create_with_outer_pip() {
    rm -rf "$venv"
    "$1" -m venv --without-pip "$venv" >/dev/null 2>&1 &&
        "$1" -m pip --python "$venv/bin/python" install -q pip >/dev/null 2>&1 && usable
}

install_venv_package() {
    version=$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $version-venv" >&2
    { apt-get install -qq -y "$version-venv" || { apt-get update -qq && apt-get install -qq -y "$version-venv"; } ||
        apt-get install -qq -y python3-venv; } >/dev/null 2>&1 </dev/null
}

if ! usable; then
    python=$(find_python)
    if [ -z "$python" ]; then
        echo "Tidings needs Python 3.11 or newer, and none was found." >&2
        echo "  Debian, Ubuntu: apt-get install python3 python3-venv; or name one: make PYTHON=/path/to/python3.11" >&2
        exit 1
    fi
    echo "making $venv with $python" >&2
    if ! create "$python" && ! { install_venv_package "$python" && create "$python"; } &&
        ! create_with_outer_pip "$python"; then
        rm -rf "$venv"
        echo "$python cannot make a virtual environment: its venv package is missing." >&2
        echo "  Debian, Ubuntu: sudo apt-get install python3-venv; then run make again" >&2
        exit 1
    fi
fi
echo "installing Tidings and what its tests need into $venv" >&2
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e '.[dev]'
touch "$venv/.ready"
