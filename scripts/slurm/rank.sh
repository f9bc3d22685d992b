#!/usr/bin/env bash
# What each rank of the trainer runs in: rank.sh FOLDER COMMAND...; its status is the command's, and lies in FOLDER.
#
# A rank that ends with another status than 0 makes srun end the others (SIGTERM, and SIGKILL behind it), and srun's
# own status is the highest of theirs. So a rank that is to be continued (75) gives the others a moment to save, too;
# and whether one failed, while the others then saved, is told by the folder. Slurm signals every process of a step:
# the command has had the signal, too.
trap : USR1 TERM INT
folder=$1
shift
"$@"
status=$?
echo "$status" >"$folder/$SLURM_PROCID"
if [ "$status" = 75 ] && [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; then sleep 5; fi
exit "$status"
