#!/usr/bin/env bash
# Makes .venv with PyTorch, the OpenMMLab toolboxes and this project, and proves that it works.
set -euo pipefail

TORCH=2.12.1
TORCHVISION=0.27.1
NEED_GB=8

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
cache=${DRCONV_MM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drconv_mm}
log=$venv.log
py=$venv/bin/python

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    cat <<HELP
usage: tools/setup_env.sh

Makes the virtual environment .venv in the repository: torch $TORCH, torchvision $TORCHVISION, the onedl family of
OpenMMLab, this project (editable) and its development tools. The first run takes 5 to 16 minutes on two cores, most of it
the build of mmcv's operators, which is kept in a cache; a run that was killed is completed by the next; a run that
finds everything takes seconds.

environment variables:
  PYTHON            the Python 3.11 to use (default: python3.11, python3 or python, whichever is one)
  VENV              where the environment goes (default: .venv)
  DRCONV_MM_CACHE   where built wheels are kept (default: ~/.cache/drconv_mm)
  PIP_INDEX_URL, https_proxy, TMPDIR   as pip reads them
HELP
    exit 0
elif [[ $# -gt 0 ]]; then
    echo "setup_env.sh takes no argument, got '$*'; see tools/setup_env.sh --help" >&2
    exit 2
fi

fail() { # message, remedy
    printf '\nset-up stopped: %s\n  what to do: %s\n' "$1" "$2" >&2
    exit 1
}

explain() { # what failed
    local tail_of_log
    tail_of_log=$(tail -n 400 "$log" 2>/dev/null || true)
    if grep -qi 'no space left on device' <<<"$tail_of_log"; then
        fail "$1: the disk is full" "free $NEED_GB GB (df -h '$(dirname "$venv")' '${TMPDIR:-/tmp}' '$cache'), or set VENV, TMPDIR or DRCONV_MM_CACHE, then run it again"
    elif grep -qiE 'connection (refused|broken|error|timed out)|NewConnectionError|ConnectTimeout|ReadTimeout|Name or service not known|Temporary failure in name resolution|No matching distribution|ProxyError|SSLError' <<<"$tail_of_log"; then
        fail "$1: the package index could not be reached or lacks a package" "check the network: python3 -m pip download --no-deps numpy; behind a proxy or mirror: https_proxy=... or PIP_INDEX_URL=https://.../simple make env"
    fi
    tail -n 15 "$log" >&2 || true
    fail "$1 failed; the last lines stand above, all of them in $log" "mend the cause, then run it again: it goes on from there"
}

step() { # title, time it takes, command...
    printf '%s (%s)\n' "$1" "$2"
    local title=$1
    shift 2
    printf '\n## %s\n' "$title" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    local job=$! waited=0
    # Signs of life for whoever waits.
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
        ((waited % 30)) || printf '    ... %d s\n' "$waited"
    done
    wait "$job" || explain "$title"
}

# A killed install leaves half packages that look whole: the mark makes the next run begin anew.
marked() { # command...
    touch "$venv/.incomplete"
    "$@"
    rm "$venv/.incomplete"
}

pip() { marked "$py" -m pip --disable-pip-version-check "$@"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 was found${PYTHON:+ at PYTHON=$PYTHON}" "sudo apt-get install python3.11 python3.11-venv python3.11-dev, or name one: PYTHON=/path/to/python3.11 make env"
}

fingerprint() {
    { cat "$root/tools/setup_env.sh" "$root/setup.cfg" "$root/constraints.txt"; echo "$root"; } | cksum
}

check_disk() {
    local folder=$1 need=$2 free
    while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1048576)}')
    ((free >= need)) || fail "$folder has $free GB free, about $need GB are needed" "free some (df -h), or set VENV, TMPDIR or DRCONV_MM_CACHE to a larger disk"
}

build_mmcv() {
    local key wheel part
    # pip's own cache knows a wheel by its sdist alone: with another torch it would be reused and fail to load.
    key=$("$py" -c 'import sys, sysconfig, torch
print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}-" + ("cuda" if torch.cuda.is_available() else "cpu"))')
    mkdir -p "$cache/wheels" || fail "the cache $cache can't be written" "set DRCONV_MM_CACHE to a folder of yours"
    if command -v flock >/dev/null; then
        exec 9>"$cache/wheels/$key.lock"
        flock 9
    fi
    wheel=$(compgen -G "$cache/wheels/$key/onedl_mmcv-*.whl" || true)
    if [[ -z $wheel ]]; then
        command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler (${CXX:-g++}): mmcv's operators are built from source" "sudo apt-get install g++, or set CXX"
        "$py" -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' ||
            fail "Python's headers are missing" "sudo apt-get install python3.11-dev"
        rm -rf "$cache/wheels/$key".part.*
        part=$(mktemp -d "$cache/wheels/$key.part.XXXXXX")
        # Without isolation, or mmcv would not see torch and leave its operators out; -g0 halves the time.
        step "[3/5] build mmcv's operators, once; kept in $cache" "4 to 11 minutes on 2 cores" \
            env MMCV_WITH_OPS=1 CFLAGS=-g0 MAX_JOBS="$(nproc)" "$py" -m pip --disable-pip-version-check wheel \
            --no-cache-dir --no-deps --no-build-isolation -w "$part" "$(requirement onedl-mmcv)"
        mkdir -p "$cache/wheels/$key"
        mv "$part"/onedl_mmcv-*.whl "$cache/wheels/$key/" # same disk: whole or not there
        rmdir "$part"
        wheel=$(compgen -G "$cache/wheels/$key/onedl_mmcv-*.whl")
    else
        echo "[3/5] mmcv's operators: found in the cache"
    fi
    step "      install mmcv" "seconds" pip install --no-deps --force-reinstall "$wheel"
    exec 9>&- || true
}

requirement() { grep -oE "^ +$1==.*" "$root/setup.cfg" | tr -d ' '; }

prove() { "$py" "$root/tools/check_env.py"; }

if [[ -f $venv/.ready && $(<"$venv/.ready") == "$(fingerprint)" ]]; then
    if prove; then exit 0; fi
    echo "The environment was complete and no longer works: making it anew."
    rm -f "$venv/.ready"
    touch "$venv/.incomplete"
fi

python=$(find_python)
if [[ -e $venv && (-f $venv/.incomplete || ! -x $py) ]]; then
    [[ -f $venv/pyvenv.cfg || -z $(ls -A "$venv") || -f $venv/.incomplete ]] ||
        fail "$venv exists and is no virtual environment" "move it away, or set VENV to another place"
    echo "A set-up was cut off: beginning anew (what pip downloaded is kept)."
    rm -rf "$venv"
fi
if [[ ! -e $venv ]]; then
    check_disk "$venv" "$NEED_GB"
    check_disk "${TMPDIR:-/tmp}" 3
fi
mkdir -p "$venv" || fail "$venv can't be written" "set VENV to a folder of yours"
: >"$log"

if [[ ! -x $py ]]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module" "sudo apt-get install python3.11-venv"
    step "[1/5] virtual environment in $venv" "10 seconds" marked "$python" -m venv "$venv"
fi
# setuptools: older ones can't read the toolboxes' licence field, 82 has no pkg_resources, which mmcv's build imports.
step "[2/5] torch $TORCH and torchvision $TORCHVISION" "1 to 3 minutes, 2.5 GB to download the first time" \
    pip install "torch==$TORCH" "torchvision==$TORCHVISION" "setuptools>=77,<81" wheel ninja psutil numpy -c "$root/constraints.txt"
build_mmcv
step "[4/5] the toolboxes, this project and its tools" "1 minute" \
    pip install --no-build-isolation -c "$root/constraints.txt" -e "$root[onedl,dev]" "torch==$TORCH" "torchvision==$TORCHVISION"
echo "[5/5] check (10 seconds)"
prove || fail "the environment is complete but does not work, see above" "do what the message says, then run it again"
fingerprint >"$venv/.ready"
