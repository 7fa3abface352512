#!/usr/bin/env bash
# Runs vivit_jax.main on a Cloud TPU VM slice, from creation to the copied checkpoint, with gcloud. See docs/launch.md.
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
usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- command to run]

Commands
  up       create, push, setup, run
  watch    like up, then restart until the run has succeeded: recreates a preempted TPU, and the run resumes
  create   request the TPU and wait until it is ready
  push     copy the code to every worker
  setup    install Python 3.13 and the package on every worker; repeat it after setup.py has changed
  run      start the command after -- on every worker, detached (arguments that begin with -- go to vivit_jax.main)
  stop     stop the run after it has saved a checkpoint
  tail     follow the run's output on one worker
  status   print the state of the TPU and of the run
  fetch    copy the run's folder from its bucket: --workdir=gs://... --to=FOLDER
  delete   delete the TPU

Options
  --name=NAME          name of the TPU and of its request
  --zone=ZONE          such as us-central2-b
  --project=PROJECT    default: gcloud's project
  --type=TYPE          v2-8, v3-32, v4-64, v5e-16 (gcloud's v5litepod-16), v5p-8, v6e-8, ...; with create, up, watch
  --spot | --reserved  cheaper, but can be preempted | from your reservation. Default: on demand
  --no-queue           create the VM directly instead of queueing; give it to every command of this TPU
  --runtime=VERSION    runtime version, default by the type
  --extras=EXTRAS      extras of the package, default [all,tpu]
  --worker=N           worker that `tail` follows, default 0; --lines=N earlier lines, default 100
  --poll=SECONDS       interval between checks, default 60
  --patience=SECONDS   longest wait for capacity, default 86400
  --restarts=N         how often `watch` restarts a failed command, default 3; preemptions do not count
  --track=alpha|beta   use `gcloud alpha` or `gcloud beta`
  --create-option=X    extra argument of gcloud's create, as --create-option=--network=NAME; may be repeated
  --ssh-option=X       extra argument of gcloud's ssh and scp, as --ssh-option=--internal-ip; may be repeated
  --dry-run            print the commands without running them
  --help               show this help
TEXT
}

name="" zone="" project="" type="" market="" queue=1 runtime="" extras="[all,tpu]" worker=0 lines=100 poll=60 patience=86400
restarts=3 track=ga dry_run=0 workdir="" to=""
create_options=() ssh_options=() job=()

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --name=* | --zone=* | --project=* | --type=* | --runtime=* | --extras=* | --workdir=* | --to=*) set_option "$1" ;;
      --worker=* | --lines=* | --poll=* | --patience=* | --restarts=* | --track=*) set_option "$1" ;;
      --spot | --reserved)
        [ -z "$market" ] || [ "--$market" = "$1" ] || refuse "--spot and --reserved exclude each other"
        market=${1#--}
        ;;
      --no-queue) queue=0 ;;
      --create-option=*) create_options+=("${1#*=}") ;;
      --ssh-option=*) ssh_options+=("${1#*=}") ;;
      --dry-run) dry_run=1 ;;
      -h | --help) usage; exit 0 ;;
      --) shift; job=("$@"); return 0 ;;
      --name | --zone | --project | --type | --workdir | --to) refuse "write $1=VALUE" ;;
      *) refuse "unknown argument $1 (the command to run goes after --)" ;;
    esac
    shift
  done
}

check() {
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    refuse "--name='$name' must be 1 to 63 lower-case letters, digits and hyphens, starting with a letter"
  [[ "$zone" =~ ^[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]$ ]] || refuse "--zone='$zone' must be a zone such as us-central2-b (with a letter at the end, unlike a region)"
  check_numbers "worker=$worker" "poll=$poll" "patience=$patience" "restarts=$restarts" "lines=$lines"
  case "$track" in ga | alpha | beta) ;; *) refuse "--track=$track must be ga, alpha or beta" ;; esac
  case "$action" in create | up | watch) [ -n "$type" ] || refuse "$action needs --type, such as --type=v5e-16" ;; esac
  case "$action" in
    run | up | watch) [ ${#job[@]} -gt 0 ] || refuse "$action needs the command to run after --: ... -- --config=configs/k400_vivit_l.py --workdir=gs://BUCKET/RUN" ;;
    fetch)
      [[ "$workdir" =~ ^gs://[a-z0-9] ]] || refuse "fetch needs --workdir=gs://BUCKET/RUN, not '$workdir'"
      [ -n "$to" ] || to=runs/$(basename "$workdir")
      ;;
  esac
  gcloud_type=""
  [ -z "$type" ] || check_type
  # Arguments alone are those of vivit_jax.main.
  case "${job[0]:-}" in --*) job=(python -m vivit_jax.main "${job[@]}") ;; esac
  check_workdir "is on the disk of each worker and lost with the VM" ${job[@]+"${job[@]}"}
}

# Checks --type; sets gcloud's name of the type and the runtime version (cloud.google.com/tpu/docs/runtimes).
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
    [ $((size % 8)) = 0 ] && [ "$size" -ge 8 ] || refuse "--type=$type: the number counts cores (2 per chip, 8 per host) and must be a multiple of 8"
  fi
  gcloud_type=$generation-$size
  runtime=${runtime:-$version}
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
[ "$dry_run" = 1 ] || command -v gcloud >/dev/null || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
prepare_gcloud
case "$action" in
  run) start_job ;;
  stop) stop_job ;;
  tail) tail_log ;;
  delete) remove ;;
  *) "$action" ;;
esac
