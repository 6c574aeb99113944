#!/usr/bin/env bash
# Trains under Slurm.
set -euo pipefail

if [[ $# -lt 4 || $1 == -h || $1 == --help ]]; then
    cat >&2 <<'EOF'
usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]

Runs tools/train.py by srun. Variables: GPUS (8) in all, GPUS_PER_NODE (8, or GPUS where that is less), CPUS_PER_TASK (5),
SRUN_ARGS more options of srun.
EOF
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
partition=$1 job_name=$2 config=$3 work_dir=$4
shift 4
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
by_srun "$partition" "$job_name" train.py "$config" --work-dir "$work_dir" --launcher slurm "$@"
