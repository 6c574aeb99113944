# How dist_*.sh and slurm_*.sh start the tools beside them; they source this file.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

by_torchrun() { # processes, tool, its arguments...
    exec torchrun \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$here/$2" "${@:3}"
}

by_srun() { # partition, job name, tool, its arguments...
    local gpus=${GPUS:-8} srun_args
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    # Several options in one variable, split at blanks.
    read -ra srun_args <<<"${SRUN_ARGS:-}"
    exec srun \
        --partition="$1" \
        --job-name="$2" \
        --gres="gpu:$per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${srun_args[@]+"${srun_args[@]}"} \
        python -u "$here/$3" "${@:4}"
}
