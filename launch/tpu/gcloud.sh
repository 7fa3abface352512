#!/usr/bin/env bash
# Sourced by launch/tpu_vm.sh: gcloud commands, and advice for their errors.
# Uses the options of tpu_vm.sh: name, zone, project, track, queue, dry_run, poll, ssh_options.
# shellcheck disable=SC2154

# Sets the parts of gcloud commands, and the file that keeps the last error.
prepare_gcloud() {
  tpus=(gcloud)
  [ "$track" = ga ] || tpus+=("$track")
  tpus+=(compute tpus)
  where=("--zone=$zone")
  [ -z "$project" ] || where+=("--project=$project")
  describe_request=("${tpus[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)")
  describe_vm=("${tpus[@]}" tpu-vm describe "$name" "${where[@]}" "--format=value(state)")
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  errors=$scratch/errors
  : >"$errors"
}

# Runs (or prints) a command; its standard error is shown, and kept in $errors for `error_kind`.
attempt() {
  if [ "$dry_run" = 1 ]; then
    quoted "$@"
    return 0
  fi
  { "$@" 2>&1 1>&3 | tee "$errors" >&2; } 3>&1
}

# Runs a query; its standard error goes to $errors only.
query() { "$@" 2>"$errors"; }

# Prints the kind of the last error. Capacity precedes quota: both are RESOURCE_EXHAUSTED.
error_kind() {
  local kind pattern
  while IFS='|' read -r kind pattern; do
    if grep -Eiq -- "$pattern" "$errors"; then
      printf '%s\n' "$kind"
      return 0
    fi
  done <<'TABLE'
capacity|no more capacity|stockout|insufficient (reserved )?capacity|not have enough resources|not enough resources|RESOURCE_POOL_EXHAUSTED|currently unavailable
quota|quota
login|active account|auth login|reauthentication|invalid_grant|application default credentials
disabled|SERVICE_DISABLED|has not been used in project|API .*not enabled|it is disabled
permission|PERMISSION_DENIED|does not have permission|required .* permission|forbidden
exists|ALREADY_EXISTS|already exists
missing|NOT_FOUND|was not found|could not be found|not found
invalid|INVALID_ARGUMENT|invalid choice|not supported|invalid value|unrecognized arguments
transient|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|connection (reset|refused)|timed out|ServiceUnavailable|rate.?limit
TABLE
  echo unknown
}

# Prints what to do about an error of kind $1, by default the last one.
advice() {
  case "${1:-$(error_kind)}" in
    capacity) echo "the zone has no free $type${market:+ ($market)}: wait (a queued request keeps its place), or try another zone or a smaller slice" ;;
    quota) echo "your quota for $type${market:+ ($market)} in $zone is used up or zero; waiting does not help. Delete unused TPUs, or request more: Console > IAM & Admin > Quotas, service 'Cloud TPU API'. Spot, on-demand and each generation have separate quotas" ;;
    login) echo "gcloud is not logged in: run 'gcloud auth login', and 'gcloud config set project PROJECT' or give --project" ;;
    disabled) echo "the Cloud TPU API is disabled in this project: run 'gcloud services enable tpu.googleapis.com'" ;;
    permission) echo "this account lacks a permission in project ${project:-of gcloud config}: it needs the roles TPU Admin (roles/tpu.admin) and Service Account User (roles/iam.serviceAccountUser); for the bucket, the VM's service account needs Storage Object Admin" ;;
    exists) echo "$name already exists in $zone: 'status' shows it, 'delete' deletes it" ;;
    missing) echo "gcloud did not find it: check --name, --zone and --project ('gcloud compute tpus queued-resources list --zone=$zone'); the zone must offer the runtime version $runtime and the type $gcloud_type ('gcloud compute tpus accelerator-types list --zone=$zone')" ;;
    invalid) echo "gcloud rejected the request: the zone may not offer $gcloud_type ('gcloud compute tpus accelerator-types list --zone=$zone'), or an option is wrong" ;;
    transient) echo "a temporary error of Google Cloud; try again in some minutes" ;;
    *) echo "gcloud failed, see its message above" ;;
  esac
}

# Sets `command` to the request for the TPU.
set_create_command() {
  if [ "$queue" = 1 ]; then
    command=("${tpus[@]}" queued-resources create "$name" "${where[@]}" "--node-id=$name"
      "--accelerator-type=$gcloud_type" "--runtime-version=$runtime")
  else
    command=("${tpus[@]}" tpu-vm create "$name" "${where[@]}" "--accelerator-type=$gcloud_type" "--version=$runtime")
  fi
  [ -z "$market" ] || command+=("--$market")
  command+=(${create_options[@]+"${create_options[@]}"})
}

# Prints the state of the TPU: absent, waiting, ready, preempted, failed (reason in $errors), unknown (no answer).
tpu_state() {
  local state gone=absent
  if [ "$queue" = 1 ]; then
    if ! state=$(query "${describe_request[@]}"); then
      if [ "$(error_kind)" = missing ]; then echo absent; else echo unknown; fi
      return 0
    fi
    case "$state" in
      ACTIVE) gone=preempted ;; # the request is granted: the VM's own state follows
      FAILED)
        query "${describe_request[@]/state.state/state.failedData.error.message}" >"$errors.reason" || true
        mv "$errors.reason" "$errors"
        echo failed
        return 0
        ;;
      SUSPENDING | SUSPENDED) echo preempted; return 0 ;;
      CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | DELETING) echo waiting; return 0 ;;
      *) echo unknown; return 0 ;;
    esac
  fi
  if ! state=$(query "${describe_vm[@]}"); then
    if [ "$(error_kind)" = missing ]; then echo "$gone"; else echo unknown; fi
    return 0
  fi
  case "$state" in
    READY) echo ready ;;
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING) echo waiting ;;
    PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | HIDING | HIDDEN) echo preempted ;;
    *) echo unknown ;;
  esac
}

# Sets `command` to ssh on workers $1 ("all", or a number) with shell command $2.
set_ssh_command() {
  command=("${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" --quiet
    ${ssh_options[@]+"${ssh_options[@]}"} "--command=$2")
}

on_workers() {
  local command
  set_ssh_command "$1" "$2"
  attempt "${command[@]}"
}

# Like on_workers, but retries while a new VM does not answer ssh yet (exit code 255).
on_new_workers() {
  local tries=0 status
  while :; do
    status=0
    on_workers "$1" "$2" || status=$?
    [ "$status" = 255 ] || return "$status"
    tries=$((tries + 1))
    [ "$tries" -lt 10 ] || die "no ssh to $name after $tries tries. Is port 22 open (firewall rule 'default-allow-ssh'), and can you reach the VM's address? Otherwise give --ssh-option=--tunnel-through-iap with --track=alpha, or --ssh-option=--internal-ip"
    say "no answer by ssh yet; trying again"
    pause 15
  done
}
