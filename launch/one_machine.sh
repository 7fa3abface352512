#!/usr/bin/env bash
# Runs vivit_jax.main on this machine: one process with all devices, or several processes connected over loopback.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
source "$root/launch/shell.sh"

usage() {
  cat <<'TEXT'
usage: launch/one_machine.sh [OPTIONS] -- arguments of vivit_jax.main

  launch/one_machine.sh -- --config=configs/moving_digits.py --workdir=runs/digits
  launch/one_machine.sh --processes=2 --virtual-devices=4 -- --config=... --workdir=...     (like a pod, on the CPU)

  --processes=N        number of processes, default 1; several share the GPUs evenly
  --virtual-devices=N  run each process on N virtual CPU devices
  --restarts=N         restart a failed run from its last checkpoint up to N times, default 0
  --port=PORT          port of the coordinator, default 8476
  --dry-run            print the commands without running them
  --help               show this help

  PYTHON=PATH          Python to use; default .venv/bin/python if it exists, else python
TEXT
}

processes=1 virtual_devices="" restarts=0 port=8476 dry_run=0
job=()
while [ $# -gt 0 ]; do
  case "$1" in
    --processes=* | --virtual-devices=* | --restarts=* | --port=*) set_option "$1" ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; job=("$@"); break ;;
    *) refuse "unknown argument $1 (arguments of vivit_jax.main go after --)" ;;
  esac
  shift
done
check_numbers "processes=$processes" "virtual-devices=${virtual_devices:-1}" "restarts=$restarts" "port=$port"
[ "$processes" -ge 1 ] || refuse "--processes=$processes must be at least 1"
[ -z "$virtual_devices" ] || [ "$virtual_devices" -ge 1 ] || refuse "--virtual-devices=$virtual_devices must be at least 1"
[ ${#job[@]} -gt 0 ] || refuse "arguments of vivit_jax.main are missing: ... -- --config=configs/moving_digits.py --workdir=runs/digits"

cd "$root"
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
gpus=()
if [ "$processes" -gt 1 ] && [ -z "$virtual_devices" ]; then
  while IFS= read -r gpu; do gpus+=("$gpu"); done < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
  [ ${#gpus[@]} -gt 0 ] && [ $((${#gpus[@]} % processes)) = 0 ] ||
    refuse "$processes processes cannot share ${#gpus[@]} GPUs evenly; --virtual-devices=N runs each on N CPU devices"
fi

# Sets `command` to the command of process $1.
set_command() {
  local each
  command=(env "TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}")
  if [ -n "$virtual_devices" ]; then
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$virtual_devices")
  elif [ ${#gpus[@]} -gt 0 ]; then
    each=$((${#gpus[@]} / processes))
    command+=("CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:$(($1 * each)):each}")")
  fi
  command+=("$python" -m vivit_jax.main "${job[@]}")
  [ "$processes" = 1 ] ||
    command+=("--coordinator_address=localhost:$port" "--num_processes=$processes" "--process_id=$1")
}

pids=()
# Ctrl-C and SIGTERM are forwarded, so that the run can save a checkpoint.
trap '[ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true; stopped=1' TERM INT
stopped=0

# Runs all processes once; returns the largest exit code.
run_once() {
  local i pid code=0 status
  pids=()
  for ((i = 0; i < processes; i++)); do
    set_command "$i"
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
      # A signal interrupts `wait`, not the process.
      kill -0 "$pid" 2>/dev/null || break
    done
    [ "$status" -le "$code" ] || code=$status
  done
  return "$code"
}

tries=0
while :; do
  code=0
  run_once || code=$?
  # 2: wrong usage. 75: stopped on request, with a checkpoint.
  case "$code" in 0 | 2 | 75) exit "$code" ;; esac
  [ "$stopped" = 0 ] && [ "$tries" -lt "$restarts" ] || exit "$code"
  tries=$((tries + 1))
  say "exit code $code; restarting ($tries of $restarts)"
done
