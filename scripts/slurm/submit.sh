#!/usr/bin/env bash
# Submits a run: as one heterogeneous job, or with --two-jobs as two. With --dry-run it prints what it would
# submit, and what the jobs would run.
#
#   JUDGE_ARGS="judge.name=exact_answer" JUDGE_OPTIONS="--time=8:00:00" TRAINER_OPTIONS="--time=8:00:00 --nodes=2" \
#     bash scripts/slurm/submit.sh [--dry-run] [--two-jobs] exp_manager.explicit_log_dir=runs/first ...
#
# JUDGE_OPTIONS and TRAINER_OPTIONS are sbatch's, JUDGE_ARGS overrides of serve_reward.yaml, the arguments those of
# train_rs.yaml. With ROLLOUTS_OPTIONS a third group has vLLM's servers, with overrides ROLLOUTS_ARGS of
# serve_rollouts.yaml.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
. scripts/slurm/common.sh
two_jobs="" arguments=()
for argument in "$@"; do
  if [ "$argument" = --two-jobs ]; then two_jobs=1; else arguments+=("$argument"); fi
done
read_arguments "${arguments[@]}"
folder=exp_manager.explicit_log_dir=$RUN_DIR
read -ra judge_options <<<"${JUDGE_OPTIONS:-}"
read -ra trainer_options <<<"${TRAINER_OPTIONS:-}"
read -ra rollouts_options <<<"${ROLLOUTS_OPTIONS:-}"
read -ra judge_args <<<"${JUDGE_ARGS:-}"

submit() {  # prints the command, and its job's number behind it
  printf '%q ' sbatch "$@"
  echo
  if [ -n "$DRY_RUN" ]; then job=JOB; else job=$(sbatch --parsable "$@") || exit 1; fi
  [ -n "$DRY_RUN" ] || echo "job ${job%%;*}"
}

if [ -n "$two_jobs" ] && [ -n "${ROLLOUTS_OPTIONS:-}" ]; then
  echo "error: ROLLOUTS_OPTIONS asks for a third group of one job: leave out --two-jobs" >&2
  exit 2
fi

if [ -z "$two_jobs" ]; then
  script=scripts/slurm/train_rs.sbatch
  options=()
  [ -z "${JUDGE_OPTIONS:-}${TRAINER_OPTIONS:-}${ROLLOUTS_OPTIONS:-}" ] || options=("${judge_options[@]}" : "${trainer_options[@]}")
  [ -z "${ROLLOUTS_OPTIONS:-}" ] || options+=(: "${rollouts_options[@]}")
  submit "${options[@]}" "$script" "$folder" "${overrides[@]}"
  [ -z "${ROLLOUTS_OPTIONS:-}" ] || group=NODE
  [ -z "$DRY_RUN" ] || SLURM_JOB_NODELIST_HET_GROUP_2=${group:-} DRY_RUN=1 bash "$script" "$folder" "${overrides[@]}"
else
  script=scripts/slurm/two_jobs.sbatch
  submit "${judge_options[@]}" "$script" judge "$folder" "${judge_args[@]}"
  submit --dependency="after:${job%%;*}" "${trainer_options[@]}" "$script" trainer "$folder" "${overrides[@]}"
  if [ -n "$DRY_RUN" ]; then
    DRY_RUN=1 bash "$script" judge "$folder" "${judge_args[@]}"
    DRY_RUN=1 bash "$script" trainer "$folder" "${overrides[@]}"
  fi
fi
