#!/usr/bin/env bash
# A run on this machine, by one process with all its devices, or by several that find each other over loopback.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
source "$root/launch/shell.sh"

usage() {
  cat <<'TEXT'
usage: launch/one_machine.sh [OPTIONS] -- ARGUMENTS OF vivit_jax.main

  launch/one_machine.sh -- --config=configs/moving_digits.py --workdir=runs/digits
  launch/one_machine.sh --processes=2 --virtual-devices=4 -- --config=... --workdir=...     (a pod in miniature, on the CPU)

  --processes=N        default 1. With more, each has its share of the GPUs, or virtual devices
  --virtual-devices=N  CPU devices of each process, instead of what the machine has
  --restarts=N         start a failed run again, from its last checkpoint, so often; default 0
  --port=PORT          where the processes meet, default 8476
  --dry-run            print the commands, run nothing
  --help               this

  PYTHON=PATH          default: .venv/bin/python where it is there, else python
TEXT
}

processes=1 devices="" restarts=0 port=8476 dry_run=0
job=()
while [ $# -gt 0 ]; do
  case "$1" in
    --processes=*) processes=${1#*=} ;;
    --virtual-devices=*) devices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; job=("$@"); break ;;
    *) refuse "unknown argument $1 (arguments of vivit_jax.main stand after --)" ;;
  esac
  shift
done
for number in "processes=$processes" "virtual-devices=${devices:-1}" "restarts=$restarts" "port=$port"; do
  [[ "${number#*=}" =~ ^[0-9]+$ ]] || refuse "--$number must be a whole number"
done
[ "$processes" -ge 1 ] || refuse "--processes=$processes must be at least 1"
[ -z "$devices" ] || [ "$devices" -ge 1 ] || refuse "--virtual-devices=$devices must be at least 1"
[ ${#job[@]} -gt 0 ] || refuse "what is to run? ... -- --config=configs/moving_digits.py --workdir=runs/digits"

cd "$root"
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
gpus=()
if [ "$processes" -gt 1 ] && [ -z "$devices" ]; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
  [ ${#gpus[@]} -gt 0 ] && [ $((${#gpus[@]} % processes)) = 0 ] ||
    refuse "$processes processes cannot share ${#gpus[@]} GPUs evenly; --virtual-devices=N gives each N devices on the CPU"
fi

# The command of process $1, as `command`.
command_of() {
  local each
  command=(env "TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}")
  if [ -n "$devices" ]; then
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$devices")
  elif [ ${#gpus[@]} -gt 0 ]; then
    each=$((${#gpus[@]} / processes))
    command+=("CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:$(($1 * each)):each}")")
  fi
  command+=("$python" -m vivit_jax.main "${job[@]}")
  # "on": one process, too, saves its step on SIGTERM.
  if [ "$processes" -gt 1 ]; then
    command+=("--coordinator_address=localhost:$port" "--num_processes=$processes" "--process_id=$1")
  else
    command+=(--distributed=on)
  fi
}

pids=()
# Ctrl-C and SIGTERM are passed on, so that the run can save its step.
trap '[ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true; stopped=1' TERM INT
stopped=0

once() {
  local i pid code=0 status
  pids=()
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    if [ "$dry_run" = 1 ]; then
      quoted "${command[@]}"
    else
      "${command[@]}" &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    while :; do
      status=0
      wait "$pid" || status=$?
      # A signal ends the waiting, not the process.
      kill -0 "$pid" 2>/dev/null || break
    done
    [ "$status" -le "$code" ] || code=$status
  done
  return "$code"
}

tries=0
while :; do
  code=0
  once || code=$?
  # 2: wrong usage. 75: asked to stop, and saved.
  case "$code" in 0 | 2 | 75) exit "$code" ;; esac
  [ "$stopped" = 0 ] && [ "$tries" -lt "$restarts" ] || exit "$code"
  tries=$((tries + 1))
  say "exit code $code; starting it again ($tries of $restarts)"
done
