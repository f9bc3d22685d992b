#!/usr/bin/env bash
# What each server of rollouts runs in: server.sh PORT LOGS COMMAND...; the first task's port is PORT, the next one's 1
# higher; vLLM's own logs come into a folder of LOGS, one a start.
#
# A server that breaks is started again, and the trainer hands it the newest weights then; one that cannot start (2)
# is not, and one that breaks for the sixth time. Slurm signals every process of a step: the command has had it, too.
ended=""
trap 'ended=1' TERM INT
port=$(($1 + SLURM_PROCID)) logs=$2
shift 2
# Where Slurm shows a node's GPUs to all of its tasks, each takes its own: vLLM begins with the first that it sees.
size=1
for argument in "$@"; do
  case $argument in vllm.tensor_parallel_size=*) size=${argument#*=} ;; esac
done
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
first=$((SLURM_LOCALID * size))
if [ ${#gpus[@]} -ge $((first + size)) ]; then
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:first:size}")
  export CUDA_VISIBLE_DEVICES
fi
for start in 1 2 3 4 5 6; do
  "$@" inference.port="$port" log_dir="$logs/server_${SLURM_PROCID}_$start"
  status=$?
  if [ -n "$ended" ] || [ "$status" != 1 ]; then exit "$status"; fi
  echo "server $SLURM_PROCID ended with status $status: it is started again"
  sleep 1
done
exit "$status"
