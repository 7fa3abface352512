#!/usr/bin/env bash
# Sourced by launch/tpu_vm.sh: calls of gcloud, and what its errors mean.
# Uses the settings of tpu_vm.sh: name, zone, project, track, queue, dry_run, poll, ssh_options.
# shellcheck disable=SC2154

# gcloud's part of the command line; filled by settings_done.
tpus=()
where=()
scratch=""
errors=""

settings_done() {
  tpus=(gcloud)
  [ "$track" = ga ] || tpus+=("$track")
  tpus+=(compute tpus)
  where=("--zone=$zone")
  [ -z "$project" ] || where+=("--project=$project")
  scratch=$(mktemp -d)
  errors=$scratch/errors
  : >"$errors"
  trap 'rm -rf "$scratch"' EXIT
}

# Runs (or prints) a command; its standard error is shown and kept in $errors for `trouble`.
attempt() {
  if [ "$dry_run" = 1 ]; then
    quoted "$@"
    return 0
  fi
  { "$@" 2>&1 1>&3 | tee "$errors" >&2; } 3>&1
}

# A question about the state of things: standard output only; its error goes to $errors.
ask() { "$@" 2>"$errors"; }

# The kind of the last error. Capacity goes before quota: both are RESOURCE_EXHAUSTED.
trouble() {
  local kind pattern
  while IFS='|' read -r kind pattern; do
    if grep -Eiq -- "$pattern" "${1:-$errors}"; then
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

# What to do about an error of that kind.
remedy() {
  case "$1" in
    capacity) echo "the zone has no free $type${market:+ ($market)}: wait (a queued request keeps its place), try another zone or a smaller slice" ;;
    quota) echo "your quota for $type${market:+ ($market)} in $zone is used up or zero; waiting does not help. Delete what you do not need, or ask for more: Console > IAM & Admin > Quotas, service 'Cloud TPU API'. Spot, on-demand and each generation have quotas of their own" ;;
    login) echo "gcloud is not logged in: run 'gcloud auth login', and 'gcloud config set project PROJECT' or give --project" ;;
    disabled) echo "the Cloud TPU API is off in this project: run 'gcloud services enable tpu.googleapis.com'" ;;
    permission) echo "this account may not do that in project ${project:-of gcloud config}: it needs the roles TPU Admin (roles/tpu.admin) and Service Account User (roles/iam.serviceAccountUser); for the bucket, the VM's service account needs Storage Object Admin" ;;
    exists) echo "$name exists already in $zone: 'status' shows it, 'delete' removes it" ;;
    missing) echo "gcloud did not find it: check --name, --zone and --project ('gcloud compute tpus queued-resources list --zone=$zone'); the runtime version $runtime and the type $gcloud_type must be offered in the zone ('gcloud compute tpus accelerator-types list --zone=$zone')" ;;
    invalid) echo "gcloud refused the request: the zone may not offer $gcloud_type ('gcloud compute tpus accelerator-types list --zone=$zone'), or an option is wrong" ;;
    transient) echo "Google Cloud did not answer as it should; try again in some minutes" ;;
    *) echo "gcloud failed, see its message above" ;;
  esac
}

create_command() {
  if [ "$queue" = 1 ]; then
    command=("${tpus[@]}" queued-resources create "$name" "${where[@]}" "--node-id=$name"
      "--accelerator-type=$gcloud_type" "--runtime-version=$runtime")
  else
    command=("${tpus[@]}" tpu-vm create "$name" "${where[@]}" "--accelerator-type=$gcloud_type" "--version=$runtime")
  fi
  [ -z "$market" ] || command+=("--$market")
  command+=(${create_options[@]+"${create_options[@]}"})
}

# The TPU in one word: absent, waiting, ready, preempted, failed, unknown (gcloud did not answer). With a
# request that failed, $errors holds its reason.
tpu_state() {
  local request="" node
  if [ "$queue" = 1 ]; then
    request=$(ask "${tpus[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)") || {
      case "$(trouble)" in missing) echo absent ;; *) echo unknown ;; esac
      return 0
    }
    case "$request" in
      ACTIVE) ;;
      FAILED)
        ask "${tpus[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.failedData.error.message)" \
          >"$errors.reason" || true
        mv "$errors.reason" "$errors"
        echo failed
        return 0
        ;;
      SUSPENDING | SUSPENDED) echo preempted; return 0 ;;
      CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | DELETING) echo waiting; return 0 ;;
      *) echo unknown; return 0 ;;
    esac
  fi
  node=$(ask "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" "--format=value(state)") || {
    case "$(trouble)" in
      missing) if [ "$queue" = 1 ]; then echo preempted; else echo absent; fi ;;
      *) echo unknown ;;
    esac
    return 0
  }
  case "$node" in
    READY) echo ready ;;
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING) echo waiting ;;
    PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | HIDING | HIDDEN) echo preempted ;;
    *) echo unknown ;;
  esac
}

# A command on workers ("all", or a number), by ssh.
on_workers() {
  attempt "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" --quiet \
    ${ssh_options[@]+"${ssh_options[@]}"} "--command=$2"
}

# The same, patiently: a new machine takes a while until it answers ssh (exit code 255).
on_new_workers() {
  local tries=0 status
  while :; do
    status=0
    on_workers "$1" "$2" || status=$?
    [ "$status" = 255 ] || return "$status"
    tries=$((tries + 1))
    [ "$tries" -lt 10 ] || die "no ssh to $name after $tries tries. Is port 22 open to you (firewall rule 'default-allow-ssh'), and has the VM an address that you reach? Else give --ssh-option=--tunnel-through-iap with --track=alpha, or --ssh-option=--internal-ip"
    say "no answer by ssh yet; trying again"
    pause 15
  done
}
