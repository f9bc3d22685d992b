#!/usr/bin/env bash
# What each server of rollouts runs in: server.sh PORT COMMAND...; the first task's port is PORT, the next one's 1 higher.
#
# A server that breaks is started again, and the trainer hands it the newest weights then; one that cannot start (2)
# is not, and one that breaks for the sixth time. Slurm signals every process of a step: the command has had it, too.
ended=""
trap 'ended=1' TERM INT
port=$(($1 + SLURM_PROCID))
shift
for _ in 1 2 3 4 5 6; do
  "$@" inference.port="$port"
  status=$?
  if [ -n "$ended" ] || [ "$status" != 1 ]; then exit "$status"; fi
  echo "server $SLURM_PROCID ended with status $status: it is started again"
  sleep 1
done
exit "$status"
