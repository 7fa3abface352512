#!/usr/bin/env bash
# Runs on each worker of a TPU VM, called by launch/tpu_vm.sh over ssh, from the pushed copy of the code.
set -euo pipefail

job=${VIVIT_JAX_JOB:-$HOME/vivit_jax_job} # log, process id, exit code
venv=${VIVIT_JAX_VENV:-$HOME/vivit_jax_venv}
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
  cat <<'TEXT'
usage: launch/tpu/worker.sh setup [EXTRAS] | start COMMAND... | state | stop | [--dry-run | --help]

  setup   install Python 3.13 with uv (the images have 3.10, vivit_jax needs 3.11), and the package with EXTRAS (default
          [all,tpu])
  start   start the command, detached, in the environment; output goes to ~/vivit_jax_job/log. One command at a time
  state   print "job: none", "job: running" or "job: exit CODE"
  stop    stop the command with SIGTERM, on which a run saves a checkpoint; kill it after a minute
TEXT
}

running() { [ -f "$job/pid" ] && [ ! -f "$job/exit" ] && kill -0 "$(cat "$job/pid")" 2>/dev/null; }

setup() {
  local extras=${1:-[all,tpu]}
  if ! command -v uv >/dev/null && [ ! -x "$HOME/.local/bin/uv" ]; then
    curl --location --silent --show-error --fail --retry 5 https://astral.sh/uv/install.sh | sh
  fi
  export PATH="$HOME/.local/bin:$PATH"
  [ -x "$venv/bin/python" ] || uv venv --python 3.13 "$venv"
  VIRTUAL_ENV=$venv uv pip install --quiet --editable "$code$extras"
  # Huge pages make libtpu start and stop much faster on v5e and newer (jax warns if they are off).
  sudo -n sh -c 'echo always >/sys/kernel/mm/transparent_hugepage/enabled' 2>/dev/null || true
  "$venv/bin/python" -c 'import jax; print("setup: jax", jax.__version__)'
}

start() {
  [ $# -gt 0 ] || { echo "error: start needs a command" >&2; exit 2; }
  if running; then
    echo "error: a command is already running (process $(cat "$job/pid")); stop it first" >&2
    exit 3
  fi
  mkdir -p "$job"
  rm -f "$job/exit" "$job/pid"
  cd "$code"
  # shellcheck disable=SC1091
  [ ! -f "$venv/bin/activate" ] || source "$venv/bin/activate"
  printf '\n== %s: %s\n' "$(date -u +%FT%TZ)" "$*" >>"$job/log"
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} PYTHONUNBUFFERED=1
  # setsid: the command survives the end of the ssh connection.
  # shellcheck disable=SC2016
  nohup setsid bash -c '
    folder=$1; shift
    "$@" &
    echo $! >"$folder/pid.new" && mv "$folder/pid.new" "$folder/pid"
    code=0
    wait $! || code=$?
    echo "$code" >"$folder/exit.new" && mv "$folder/exit.new" "$folder/exit"
  ' job "$job" "$@" </dev/null >>"$job/log" 2>&1 &
  for _ in $(seq 50); do
    [ ! -f "$job/pid" ] || break
    sleep 0.1
  done
  echo "job: started"
}

state() {
  if [ -f "$job/exit" ]; then
    echo "job: exit $(cat "$job/exit")"
  elif running; then
    echo "job: running"
  elif [ -f "$job/pid" ]; then
    echo "job: exit 137" # no exit code: killed, or the machine was restarted
  else
    echo "job: none"
  fi
}

stop() {
  if ! running; then
    echo "job: not running"
    return
  fi
  local process
  process=$(cat "$job/pid")
  kill -TERM "$process" || true
  for _ in $(seq "${VIVIT_JAX_STOP_SECONDS:-60}"); do
    running || break
    sleep 1
  done
  ! running || kill -KILL "$process" || true
  echo "job: stopped"
}

command=${1:---help}
[ $# -eq 0 ] || shift
case "$command" in
  setup | start | state | stop) "$command" "$@" ;;
  --dry-run) echo "launch/tpu/worker.sh runs on the workers of a TPU VM; launch/tpu_vm.sh --dry-run shows its calls" ;;
  -h | --help) usage ;;
  *) echo "error: unknown command $command" >&2; usage >&2; exit 2 ;;
esac
