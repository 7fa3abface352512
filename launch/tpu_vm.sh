#!/usr/bin/env bash
# A Cloud TPU VM from creation to the fetched checkpoint, by gcloud. docs/launch.md shows its use.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
source "$root/launch/shell.sh"
# shellcheck source=launch/tpu/gcloud.sh
source "$root/launch/tpu/gcloud.sh"
# shellcheck source=launch/tpu/steps.sh
source "$root/launch/tpu/steps.sh"

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- WHAT TO RUN]

Commands
  up       create, push, setup, run
  watch    up, and then again whatever is missing: a preempted TPU is made anew, and the run resumes. Until it has ended
  create   ask for the TPU and wait until it is ready
  push     copy the code to every worker
  setup    Python 3.12 and the package on every worker; again after setup.py has changed
  run      start what stands after -- on every worker, detached (arguments that begin with -- go to vivit_jax.main)
  stop     ask the run to save its step and end
  tail     follow the run's output on one worker
  status   the TPU and the run, in a word each
  fetch    copy the run's folder from its bucket: --workdir=gs://... --to=FOLDER
  delete   give the TPU back

Options
  --name=NAME          of the TPU and of the request for it
  --zone=ZONE          such as us-central2-b
  --project=PROJECT    default: gcloud's
  --type=TYPE          v2-8, v3-32, v4-64, v5e-16 (gcloud's v5litepod-16), v5p-8, v6e-8, ...; with create, up, watch
  --spot | --reserved  cheaper, but may be taken away at any time | from your reservation. Default: on demand
  --no-queue           create the VM at once or fail, instead of queueing; give it to every command of this TPU
  --runtime=VERSION    default: by the type
  --extras=EXTRAS      of the package, default [all,tpu]
  --worker=N           whose output `tail` follows, default 0; --lines=N of what there is already, default 100
  --poll=SECONDS       between two looks, default 60
  --patience=SECONDS   longest wait for capacity, default 86400
  --restarts=N         how often `watch` starts a failed command again, default 3; preemptions do not count
  --track=alpha|beta   use `gcloud alpha` or `gcloud beta`
  --create-option=X    one more argument for gcloud's create, as --create-option=--network=NAME; several allowed
  --ssh-option=X       one more argument for gcloud's ssh and scp, as --ssh-option=--internal-ip; several allowed
  --dry-run            print the commands, run nothing
  --help               this
TEXT
}

name="" zone="" project="" type="" market="" queue=1 runtime="" extras="[all,tpu]" worker=0 lines=100 poll=60 patience=86400
restarts=3 track=ga dry_run=0 workdir="" to=""
create_options=() ssh_options=() job=()

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --spot) set_market spot ;;
      --reserved) set_market reserved ;;
      --no-queue) queue=0 ;;
      --runtime=*) runtime=${1#*=} ;;
      --extras=*) extras=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --lines=*) lines=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --patience=*) patience=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --track=*) track=${1#*=} ;;
      --create-option=*) create_options+=("${1#*=}") ;;
      --ssh-option=*) ssh_options+=("${1#*=}") ;;
      --workdir=*) workdir=${1#*=} ;;
      --to=*) to=${1#*=} ;;
      --dry-run) dry_run=1 ;;
      -h | --help) usage; exit 0 ;;
      --) shift; job=("$@"); return 0 ;;
      --name | --zone | --project | --type | --workdir | --to) refuse "write $1=VALUE" ;;
      *) refuse "unknown argument $1 (what is to run stands after --)" ;;
    esac
    shift
  done
}

set_market() {
  [ -z "$market" ] || [ "$market" = "$1" ] || refuse "--spot and --reserved exclude each other"
  market=$1
}

check() {
  local number
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    refuse "--name='$name' must be 1 to 63 lower-case letters, digits and hyphens, a letter first"
  [[ "$zone" =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || refuse "--zone='$zone' must be a zone such as us-central2-b (a region has no letter at its end)"
  for number in "worker=$worker" "poll=$poll" "patience=$patience" "restarts=$restarts" "lines=$lines"; do
    [[ "${number#*=}" =~ ^[0-9]+$ ]] || refuse "--$number must be a whole number"
  done
  case "$track" in ga | alpha | beta) ;; *) refuse "--track=$track must be ga, alpha or beta" ;; esac
  case "$action" in create | up | watch) [ -n "$type" ] || refuse "$action needs --type, such as --type=v5e-16" ;; esac
  case "$action" in
    run | up | watch) [ ${#job[@]} -gt 0 ] || refuse "$action needs what to run, after --: ... -- --config=configs/k400_vivit_l.py --workdir=gs://BUCKET/RUN" ;;
    fetch)
      [[ "$workdir" =~ ^gs://[a-z0-9] ]] || refuse "fetch needs --workdir=gs://BUCKET/RUN, not '$workdir'"
      [ -n "$to" ] || to=runs/$(basename "$workdir")
      ;;
  esac
  [ -z "$type" ] || check_type
  gcloud_type=${gcloud_type:-}
  check_job
}

# The type's generation and size; gcloud's name of it; its runtime version (cloud.google.com/tpu/docs/runtimes).
check_type() {
  local generation=${type%-*} size=${type##*-} sizes version
  case "$generation" in
    v2) sizes="8 32 128 256 512" version=tpu-ubuntu2204-base ;;
    v3) sizes="8 32 64 128 256 512 1024 2048" version=tpu-ubuntu2204-base ;;
    v4) sizes="" version=tpu-ubuntu2204-base ;;
    v5e | v5litepod) sizes="1 4 8 16 32 64 128 256" version=v2-alpha-tpuv5-lite generation=v5litepod ;;
    v5p) sizes="" version=v2-alpha-tpuv5 ;;
    v6e) sizes="1 4 8 16 32 64 128 256" version=v2-alpha-tpuv6e ;;
    tpu7x | v7x) refuse "--type=$type: this generation is offered on GKE only; see launch/gke.sh and docs/launch.md" ;;
    *) refuse "--type=$type is unknown: v2-8, v3-32, v4-64, v5e-16, v5p-8, v6e-8, ..." ;;
  esac
  [[ "$size" =~ ^[0-9]+$ ]] || refuse "--type=$type must end in a number, such as $generation-8"
  if [ -n "$sizes" ]; then
    [[ " $sizes " == *" $size "* ]] || refuse "--type=$type: there is no slice of $size; choose one of $sizes"
  else
    [ $((size % 8)) = 0 ] && [ "$size" -ge 8 ] || refuse "--type=$type: the number counts cores, 2 a chip and 8 a host, and must be a multiple of 8"
  fi
  gcloud_type=$generation-$size
  runtime=${runtime:-$version}
}

# What is to run; on a machine that may vanish, or on several, its results must not stay there.
check_job() {
  [ ${#job[@]} -gt 0 ] || return 0
  case "${job[0]}" in
    --*) job=(python -m vivit_jax.main "${job[@]}") ;;
  esac
  local word
  for word in "${job[@]}"; do
    case "$word" in
      --workdir=gs://*) ;;
      --workdir=*) refuse "$word would stay on the TPU VM, where each worker has a disk of its own, gone with the VM: give --workdir=gs://BUCKET/RUN" ;;
    esac
  done
}

action=${1:---help}
[ $# -eq 0 ] || shift
case "$action" in
  -h | --help) usage; exit 0 ;;
  up | watch | create | push | setup | run | stop | tail | status | fetch | delete) ;;
  *) refuse "unknown command $action" ;;
esac
parse "$@"
check
[ "$dry_run" = 1 ] || command -v gcloud >/dev/null || die "there is no gcloud here: https://cloud.google.com/sdk/docs/install"
settings_done
case "$action" in
  up) create; push; setup; start_job ;;
  run) start_job ;;
  stop) stop_job ;;
  tail) tail_log ;;
  delete) remove ;;
  *) "$action" ;;
esac
