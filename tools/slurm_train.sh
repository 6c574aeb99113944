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
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# Several options in one variable, split at blanks.
read -ra srun_args <<<"${SRUN_ARGS:-}"

PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    python -u "$here/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
