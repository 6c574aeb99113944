#!/usr/bin/env bash
# Trains on several GPUs of one machine or, started once on each, of several machines.
set -euo pipefail

if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
    cat >&2 <<'EOF'
usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]

Runs tools/train.py in GPUS processes. Variables: NNODES (1) machines, NODE_RANK (0) this one's number, MASTER_ADDR
(127.0.0.1) and PORT (29500) of the first one.
EOF
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
config=$1 gpus=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
by_torchrun "$gpus" train.py "$config" --launcher pytorch "$@"
