# shellcheck shell=bash
# What test_bounds.sh and test_newest.sh have in common, which source it in the root of the repository: arguments, and a run of
# pytest in an environment of other packages than the pinned ones, which is recorded.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TEST_WORKERS="${TEST_WORKERS:-2}"

wanted=()  # what stands before --
while [ $# -gt 0 ] && [ "$1" != -- ]; do wanted+=("$1"); shift; done
[ $# -eq 0 ] || shift
for_pytest=("$@")

# tested ENVIRONMENT RECORD NAME "PACKAGE ..." TESTS...: run these, and record them under this name, unless pytest was given more.
# Returns 1 where a test failed; ends the script where nothing ran, or it was interrupted.
tested() {
  local env=$1 record=$2 name=$3 packages out status=0
  read -ra packages <<<"$4"
  shift 4
  out=$(mktemp)
  PATH="$env/bin:$PATH" "$env/bin/python" -m pytest -p no:cacheprovider --numprocesses "$TEST_WORKERS" --dist loadfile \
    "--junitxml=$out" "$@" "${for_pytest[@]}" || status=$?
  [ $status -le 1 ] || exit $status
  if [ ${#for_pytest[@]} -eq 0 ]; then
    "$env/bin/python" scripts/tests_record.py "$out" "$record" "$name" "$*" "${packages[@]}"
  fi
  rm -f "$out"
  return $status
}
