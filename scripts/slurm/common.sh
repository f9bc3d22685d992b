#!/usr/bin/env bash
# What the jobs of this folder share: arguments, logs, the token, containers, how steps are started, watched and
# ended, and whether the job goes back into the queue. The scripts source it from the repository's root.
#
# Statuses of the trainer: 0 finished, 1 failed, 2 to be mended, 75 stopped to be continued. Left out on purpose:
# a requeue for a reason of Slurm's own (a node that failed, preemption), which Slurm does itself.
set -uo pipefail

TO_BE_CONTINUED=75
STARTUP_TIMEOUT=${STARTUP_TIMEOUT:-900}  # seconds until the judge must be ready
STOP_TIMEOUT=${STOP_TIMEOUT:-300}        # seconds that a trainer may take to save once its judge is gone
CONTAINER_IMAGE=${CONTAINER_IMAGE:-}
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-}   # more of them, separated by commas: path or path:path
if [ -n "$CONTAINER_IMAGE" ]; then default_python=python; else default_python=${VENV:-.venv}/bin/python; fi
PYTHON=${PYTHON:-$default_python}
DRY_RUN=${DRY_RUN:-}
export PYTHONUNBUFFERED=1

# Why the trainer has to stop: USR1 (the time limit is near), TERM (cancelled), judge or rollouts (they are gone).
asked=""
judge="" rollouts="" trainer="" judge_log="" rollouts_log="" trainer_log="" status=1
served=()  # overrides by which the trainer finds servers of rollouts

say() { echo "$(date '+%F %T') $*"; }
die() { say "error: $*" >&2; exit 1; }

read_arguments() {  # sets RUN_DIR, and `overrides`, what is left without the run's folder
  local argument
  overrides=() RUN_DIR=""
  for argument in "$@"; do
    case $argument in
      --dry-run) DRY_RUN=1 ;;
      exp_manager.explicit_log_dir=*) RUN_DIR=${argument#*=} ;;
      *) overrides+=("$argument") ;;
    esac
  done
  [ -n "$RUN_DIR" ] || { echo "error: exp_manager.explicit_log_dir=<the run's folder> is missing" >&2; exit 2; }
}

open_folder() {  # what both sides share lies in the run's folder
  [ -z "$DRY_RUN" ] || return 0
  mkdir -p "$RUN_DIR/logs" "$RUN_DIR/judge" || die "$RUN_DIR cannot be written"
  trap 'asked=USR1' USR1
  trap 'asked=TERM' TERM INT
  touch "$RUN_DIR/logs/.started_$SLURM_JOB_ID"
  # When the job ends, by which the trainer knows how long a save may take; newer Slurms say so themselves.
  local ends
  ends=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e 2>/dev/null | head -n 1)
  case ${SLURM_JOB_END_TIME:-$ends} in
    20??-*) SLURM_JOB_END_TIME=$(date -d "$ends" +%s) && export SLURM_JOB_END_TIME ;;
  esac
}

next_log() {  # a log of its own for each attempt: none is written over
  local number=1 name
  [ -z "$DRY_RUN" ] || { echo "$RUN_DIR/logs/$1_NN.log"; return; }
  while name=$(printf '%s/logs/%s_%02d.log' "$RUN_DIR" "$1" "$number"); do
    (set -o noclobber; : >"$name") 2>/dev/null && break
    [ -e "$name" ] || die "$name cannot be written"
    number=$((number + 1))
  done
  echo "$name"
}

token_of() {  # token_of KEY [FOLDER VARIABLE]: the override by which a side finds the secret; the first makes it up
  local file=$RUN_DIR/${2:-judge}/token variable=${3:-RS_ALIGNER_JUDGE_TOKEN}
  [ -z "${!variable:-}" ] || return 0  # both sides find it in their environment
  if [ -z "$DRY_RUN" ] && [ ! -e "$file" ]; then
    (umask 077; od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$file.$SLURM_JOB_ID")
    ln "$file.$SLURM_JOB_ID" "$file" 2>/dev/null  # whole, or the other side's
    rm -f "$file.$SLURM_JOB_ID"
  fi
  [ -n "$DRY_RUN" ] || chmod 600 "$file" || die "the token $file cannot be made"
  echo "$1=$file"
}

container() {  # sets `step_options` and `command` for CONTAINER_IMAGE: by pyxis where srun has it, else apptainer
  step_options=() command=()
  [ -n "$CONTAINER_IMAGE" ] || return 0
  local runner mounts=$PWD:$PWD mount
  [ -n "$DRY_RUN" ] || mkdir -p "$RUN_DIR"
  mounts+=,$(realpath -m "$RUN_DIR"):$(realpath -m "$RUN_DIR")${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
  if srun --help 2>/dev/null | grep -q -e --container-image; then
    step_options=(--container-image="$CONTAINER_IMAGE" --container-mounts="$mounts" --container-workdir="$PWD")
  elif runner=$(command -v apptainer || command -v singularity); then
    command=("$runner" exec --pwd "$PWD")
    for mount in ${mounts//,/ }; do command+=(--bind "$mount"); done
    # GPUs are handed through where the job has some: Slurm's variables tell of this group alone, the judge's.
    case "${TRAINER_OPTIONS:-} ${ROLLOUTS_OPTIONS:-} ${SLURM_GPUS_ON_NODE:+gpu}${SLURM_JOB_GPUS:+gpu}" in
      *gpu*) command+=(--nv) ;;
    esac
    command+=("$CONTAINER_IMAGE")
  elif [ -n "$DRY_RUN" ]; then
    command=("<pyxis or apptainer>" "$CONTAINER_IMAGE")
  else
    die "CONTAINER_IMAGE is set, but srun has no --container-image (pyxis), and there is no apptainer"
  fi
}

nodes_of() { if [ -n "$DRY_RUN" ]; then echo "NODE"; else scontrol show hostnames "$1"; fi; }
node_of() { nodes_of "$1" | head -n 1; }

step() {  # step LOG COMMAND...: start a step in the background; its process is $!
  local log=$1
  shift
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@"
    echo "# output: $log"
    return
  fi
  "$@" >"$log" 2>&1 </dev/null &
}

start_judge() {  # start_judge PORT CPUS GROUP OVERRIDES...
  local port=$1 cpus=$2 group=$3 token
  shift 3
  token=$(token_of inference.token_file) || exit 1
  judge_log=$(next_log judge) || exit 1
  container
  step "$judge_log" srun ${group:+--het-group="$group"} --nodes=1 --ntasks=1 ${cpus:+--cpus-per-task="$cpus"} \
    "${step_options[@]}" "${command[@]}" "$PYTHON" examples/serve_reward.py inference.host=0.0.0.0 \
    inference.port="$port" ${token:+"$token"} "$@"
  judge=${!:-}
}

start_rollouts() {  # start_rollouts PORT NODES TASKS CPUS GROUP OVERRIDES...: a server a task, at ports from PORT on
  local port=$1 nodes=$2 tasks=$3 cpus=$4 group=$5 token name endpoints=() argument model=()
  shift 5
  [ -n "$DRY_RUN" ] || mkdir -p "$RUN_DIR/rollout_servers" || exit 1
  token=$(token_of inference.token_file rollout_servers RS_ALIGNER_ROLLOUTS_TOKEN) || exit 1
  rollouts_log=$(next_log rollouts) || exit 1
  for argument in "${overrides[@]}"; do  # they start with the trainer's model
    case $argument in pretrained_checkpoint.restore_from_path=*) model=("$argument") ;; esac
  done
  tasks=${tasks:-$(wc -w <<<"$nodes")}  # one a node, where nothing else was asked for
  for name in $nodes; do
    for _ in $(seq $((tasks / $(wc -w <<<"$nodes")))); do endpoints+=("$name:$((port + ${#endpoints[@]}))"); done
  done
  container
  step "$rollouts_log" srun --het-group="$group" --ntasks="$tasks" ${cpus:+--cpus-per-task="$cpus"} --distribution=block \
    --kill-on-bad-exit=0 --wait=0 "${step_options[@]}" bash scripts/slurm/server.sh "$port" \
    "${rollouts_log%.log}" "${command[@]}" "$PYTHON" examples/serve_rollouts.py "${model[@]}" weights_root="$RUN_DIR" \
    inference.host=0.0.0.0 startup_timeout="$STARTUP_TIMEOUT" ${token:+"$token"} "$@"
  rollouts=${!:-}
  token=$(token_of model.rs.generation.servers.token_file rollout_servers RS_ALIGNER_ROLLOUTS_TOKEN) || exit 1
  served=(model.rs.generation.engine=vllm "model.rs.generation.endpoints=[$(IFS=,; echo "${endpoints[*]}")]" \
    model.rs.generation.servers.startup_timeout="$STARTUP_TIMEOUT" ${token:+"$token"})
}

start_trainer() {  # start_trainer HOST PORT NODES RANKS CPUS GROUP OVERRIDES...
  local host=$1 port=$2 nodes=$3 ranks=$4 cpus=$5 group=$6 token
  shift 6
  token=$(token_of remote_rm.token_file) || exit 1
  trainer_log=$(next_log trainer) || exit 1
  last_asked=-20
  statuses=$RUN_DIR/logs/.statuses_$SLURM_JOB_ID
  [ -n "$DRY_RUN" ] || { rm -rf "$statuses"; mkdir "$statuses"; } || exit 1
  container
  step "$trainer_log" srun ${group:+--het-group="$group"} ${cpus:+--cpus-per-task="$cpus"} --kill-on-bad-exit=1 \
    "${step_options[@]}" bash scripts/slurm/rank.sh "$statuses" "${command[@]}" "$PYTHON" examples/train_rs.py \
    exp_manager.explicit_log_dir="$RUN_DIR" trainer.num_nodes="$nodes" trainer.devices=$((ranks / nodes)) \
    ${cpus:+trainer.threads="$cpus"} remote_rm.reward_model.ip="$host" remote_rm.reward_model.port="$port" \
    remote_rm.startup_timeout="$STARTUP_TIMEOUT" ${token:+"$token"} "${served[@]}" "$@"
  trainer=${!:-}
}

is_alive() { kill -0 "$1" 2>/dev/null; }

watch() {  # watch CHECK: until the trainer has ended; CHECK says whether its servers are there, else who is `gone`
  local told="" since=0
  while is_alive "$trainer"; do
    [ -n "$asked" ] || "$1" || asked=${gone:-judge}
    if [ "$told" != "$asked" ]; then
      told=$asked since=$SECONDS
      say "the trainer is asked to save and to stop: $asked"
    fi
    case $asked in
      USR1 | judge | rollouts) ask_trainer ;;  # a SIGTERM to this job has reached its steps, too
    esac
    if is_without_servers && [ $((SECONDS - since)) -gt "$STOP_TIMEOUT" ]; then
      scancel --quiet --signal=KILL "$SLURM_JOB_ID"
    fi
    sleep 1
  done
  wait "$trainer"
  status=$(status_of_ranks $?)
  say "the trainer ended with status $status: $trainer_log"
  case $status in 0 | "$TO_BE_CONTINUED") ;; *) tail -n 12 "$trainer_log" >&2 ;; esac
}

is_without_servers() { [ "$asked" = judge ] || [ "$asked" = rollouts ]; }  # why it has to stop

ask_trainer() {  # now and again: a step that is about to begin loses a signal
  [ $((SECONDS - last_asked)) -ge 20 ] || return 0
  last_asked=$SECONDS
  kill -USR1 "$trainer" 2>/dev/null  # srun hands it on; a SIGTERM it would answer by a SIGKILL to its tasks
}

status_of_ranks() {  # status_of_ranks SRUNS: 2 or 1 where a rank says so, whatever the others did then; else srun's
  local found
  found=" $(cat "$statuses"/* 2>/dev/null | tr '\n' ' ') "
  rm -rf "$statuses"
  case $found in
    *" 2 "*) echo 2 ;;
    *" 1 "*) echo 1 ;;
    # Ended by the signal, before it heeded any.
    *" 138 "*) if [ -n "$asked" ]; then echo "$TO_BE_CONTINUED"; else echo 1; fi ;;
    *) case $1 in 0 | "$TO_BE_CONTINUED") echo "$1" ;; *) echo 1 ;; esac ;;
  esac
}

end_steps() { scancel --quiet --signal=TERM "$SLURM_JOB_ID"; }  # of this job, and not this shell

end_servers() {
  local deadline=$((SECONDS + 20))  # what has not ended by then, Slurm kills with the job
  while { [ -n "$judge" ] && is_alive "$judge"; } || { [ -n "$rollouts" ] && is_alive "$rollouts"; }; do
    end_steps
    [ "$SECONDS" -lt "$deadline" ] || break
    sleep 1
  done
}

ended_first() {  # ended_first PROCESS LOG WHO: how it ended, and the last lines of its log
  wait "$1"
  say "error: $3 ended before the trainer, with status $?; the end of $2:" >&2
  tail -n 5 "$2" >&2
}
judge_failed() { ended_first "$judge" "$judge_log" "the judge"; }

has_progressed() {  # since open_folder, or since the attempt began
  local began=$RUN_DIR/logs/.started_$SLURM_JOB_ID
  [ -n "$(find "$RUN_DIR/metrics.jsonl" "$RUN_DIR/rollouts" -newer "$began" 2>/dev/null)" ]
}

requeue() {  # back into the queue; it does not return
  rm -f "$RUN_DIR/logs/.started_$SLURM_JOB_ID"
  [ "$asked" != TERM ] || exit 143  # cancelled, or preempted: then Slurm puts it back itself
  say "to be continued: the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || die "it cannot be requeued: submit it again, with the same arguments"
  sleep 60  # Slurm ends this shell
  exit "$TO_BE_CONTINUED"
}

leave() {  # with the trainer's status, or back into the queue
  if [ "$status" = "$TO_BE_CONTINUED" ]; then
    has_progressed || die "the run was stopped before it had done anything: it needs a longer --time, see $trainer_log"
    requeue
  fi
  rm -f "$RUN_DIR/logs/.started_$SLURM_JOB_ID"
  [ "$asked" != TERM ] || exit 143
  exit "$status"
}
