#!/usr/bin/env bash
# From nothing to a policy that has learnt from its own best answers, in some minutes on a CPU:
#   bash scripts/quickstart.sh [--seed N] [--out DIR] [--engine auto|vllm]
#
# Makes a task (additions), trains a small model on it until it is right now and then, serves a judge that
# knows the answers, lets the model learn from those of its answers that the judge found right, and prints
# what came of it. With --engine vllm the answers are sampled by a vLLM server, in an environment of its own.
# Nothing is downloaded but packages. Ctrl-C ends everything that was started.
set -euo pipefail

seed=0 out="" engine=auto
while [ $# -gt 0 ]; do
  case "$1" in
    --seed=?*) seed=${1#*=} ;;
    --out=?*) out=${1#*=} ;;
    --engine=?*) engine=${1#*=} ;;
    --seed | --out | --engine)
      [ -n "${2:-}" ] || { echo "quickstart: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift ;;
    *) echo "quickstart: $1 is not known; use --seed N, --out DIR and --engine auto|vllm" >&2; exit 2 ;;
  esac
  shift
done
[[ $seed =~ ^[0-9]{1,9}$ ]] || { echo "quickstart: --seed should be a whole number, not '$seed'" >&2; exit 2; }
[[ $engine =~ ^(auto|vllm)$ ]] || { echo "quickstart: --engine should be auto or vllm, not '$engine'" >&2; exit 2; }
[ -z "$out" ] || out=$(realpath -m -- "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${out:-$PWD/runs/quickstart-$(date +%Y%m%d-%H%M%S)}
[ ! -e "$out" ] || { echo "quickstart: $out is there already; name another folder with --out" >&2; exit 2; }
python=$PWD/.venv/bin/python
export ARITHMETIC=$out PYTHONUNBUFFERED=1  # the configs find the task, and each other, in $ARITHMETIC

# A job is started in a session of its own and waited for, so that no signal of the terminal reaches it, bash
# sees each at once, and what a job leaves behind can be found by its group.
job="" server="" rollouts=""
end() {  # SIGTERM to a job's process; SIGKILL to what is left of its group when that has ended, or after 10 s
  [ -n "$1" ] || return 0
  kill -TERM "$1" 2>/dev/null || true
  for _ in {1..100}; do kill -0 "$1" 2>/dev/null || break; sleep 0.1; done
  kill -KILL -- "-$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
leave() {
  trap '' INT TERM HUP
  end "$job"
  end "$server"
  end "$rollouts"
}
trap leave EXIT
trap 'echo "quickstart: interrupted, ending what was started" >&2; exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
gone() {  # gone WHAT PID LOG: end what asks a server that has ended, and say what it said last; fails where it lives
  [ -n "$2" ] && ! kill -0 "$2" 2>/dev/null || return 1
  end "$job"
  { echo "quickstart: $1 has ended: $3"; tail -n 5 "$3"; } >&2
}
run() {
  setsid "$@" </dev/null &
  job=$!
  wait -n "$job" $server $rollouts 2>/dev/null || true  # whichever ends first
  if gone "the judge" "$server" "$out/judge.log" || gone vLLM "$rollouts" "$out/rollouts.log"; then exit 1; fi
  wait "$job"
  job=""
}
say() { echo; echo "== $*"; }

say "[1/5] setting up .venv"
run bash scripts/setup.sh
[ "$engine" = auto ] || run bash scripts/setup_vllm.sh
began=$(date +%s)

say "[2/5] making the task in $out/task: 3-digit additions, and a model of random weights"
heads=4
[ "$engine" = auto ] || heads=3
run "$python" examples/arithmetic/make_task.py --out "$out/task" --seed "$seed" --heads "$heads"

say "[3/5] training it on worked additions until it solves a third of others (some seconds to start)"
run "$python" examples/train_sft.py --config-name arithmetic_sft model.seed="$seed"

free_port='from rs_aligner.remote.listening import any_free_port; print(any_free_port())'
port=$("$python" -c "$free_port")
say "[4/5] starting the judge on port $port, then learning from the model's own right answers"
setsid "$python" examples/serve_reward.py judge.name=exact_answer inference.port="$port" \
  </dev/null >"$out/judge.log" 2>&1 &
server=$!
decoded=()
if [ "$engine" = vllm ]; then
  served=$("$python" -c "$free_port")
  setsid "$python" examples/serve_rollouts.py pretrained_checkpoint.restore_from_path="$out/sft/final" \
    inference.port="$served" weights_root="$out" log_dir="$out" vllm.cpu_cache_gib=1 \
    </dev/null >"$out/rollouts.log" 2>&1 &
  rollouts=$!
  echo "vLLM starts on port $served, in half a minute or so: $out/rollouts.log"
  until grep -q '^rollouts ready' "$out/rollouts.log"; do
    if gone vLLM "$rollouts" "$out/rollouts.log"; then exit 1; fi
    sleep 0.5
  done
  decoded=(model.rs.generation.engine=vllm "model.rs.generation.endpoints=[127.0.0.1:$served]"
    model.rs.generation.servers.startup_timeout=60)
fi
run "$python" examples/train_rs.py --config-name arithmetic model.seed="$seed" \
  remote_rm.reward_model.port="$port" remote_rm.startup_timeout=60 "${decoded[@]}"
end "$server"
end "$rollouts"
server="" rollouts=""

say "[5/5] what came of it"
run "$python" examples/arithmetic/show_result.py "$out" --seconds $(($(date +%s) - began))
