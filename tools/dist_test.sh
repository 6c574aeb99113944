#!/usr/bin/env bash
# Evaluates on several GPUs of one machine or, started once on each, of several machines.
set -euo pipefail

if [[ $# -lt 3 || $1 == -h || $1 == --help ]]; then
    cat >&2 <<'EOF'
usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]

Runs tools/test.py in GPUS processes. Variables: NNODES (1) machines, NODE_RANK (0) this one's number, MASTER_ADDR
(127.0.0.1) and PORT (29500) of the first one.
EOF
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
by_torchrun "$gpus" test.py "$config" "$checkpoint" --launcher pytorch "$@"
