#!/usr/bin/env bash
# Sourced by launch/tpu_vm.sh: its commands. The options are those of tpu_vm.sh.
# shellcheck disable=SC2154

worker_script="bash vivit_jax/launch/tpu/worker.sh"

# Waits $poll seconds. Ends with an error after $patience seconds in total (`waited`).
wait_for_capacity() {
  if [ "$waited" -ge "$patience" ]; then
    die "no TPU after $waited s: $(advice capacity). --patience=SECONDS waits longer; 'watch' and 'create' continue the wait, 'delete' withdraws the request"
  fi
  say "$(date -u +%H:%M:%S) $1; checking again in $poll s (waited $waited of $patience s)"
  pause "$poll"
  waited=$((waited + poll))
}

create() {
  local tries=0 command=()
  set_create_command
  waited=0
  while :; do
    if attempt "${command[@]}"; then
      if [ "$dry_run" = 1 ]; then
        print_state_queries
        return 0
      fi
      if await_ready; then return 0; fi
      continue # it was lost before it was ready: request it again
    fi
    case "$(error_kind)" in
      exists)
        say "$name already exists; using it"
        if await_ready; then return 0; fi
        ;;
      capacity)
        [ "$market" != reserved ] || die "the reservation has no room for $gcloud_type: see 'gcloud compute tpus reservations list --zone=$zone', or omit --reserved"
        wait_for_capacity "no capacity for $type in $zone"
        ;;
      transient)
        tries=$((tries + 1))
        [ "$tries" -lt 5 ] || die "$(advice)"
        say "trying again in $poll s"
        pause "$poll"
        ;;
      *) die "$(advice)" ;;
    esac
  done
}

# Waits until the TPU is ready. Returns 1 after deleting a TPU that was preempted or whose request failed for lack of
# capacity, so that it can be requested again.
await_ready() {
  local unknown=0
  while :; do
    case "$(tpu_state)" in
      ready)
        say "$name is ready"
        return 0
        ;;
      waiting)
        unknown=0
        wait_for_capacity "$name is not ready yet"
        ;;
      failed)
        say "the request failed: $(tr '\n' ' ' <"$errors")"
        case "$(error_kind)" in capacity | transient) ;; *) die "$(advice). 'launch/tpu_vm.sh delete' deletes the failed request" ;; esac
        remove
        wait_for_capacity "the request failed for lack of capacity"
        return 1
        ;;
      preempted)
        say "$name was preempted before it was ready"
        remove
        return 1
        ;;
      absent) die "$(advice missing)" ;;
      *) wait_for_answer ;;
    esac
  done
}

# Waits when gcloud did not report the state (counted in `unknown`), unless waiting cannot help.
wait_for_answer() {
  case "$(error_kind)" in login | permission | disabled) die "$(advice)" ;; esac
  unknown=$((unknown + 1))
  [ "$unknown" -lt 30 ] || die "gcloud has not answered $unknown times: $(tail -n 1 "$errors")"
  pause "$poll"
}

print_state_queries() {
  [ "$queue" = 0 ] || quoted "${describe_request[@]}"
  quoted "${describe_vm[@]}"
}

# Deletes the TPU and its request without confirmation. A TPU that does not exist is no error.
remove() {
  local command=("${tpus[@]}" tpu-vm delete "$name" "${where[@]}" --quiet)
  [ "$queue" = 0 ] || command=("${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet)
  attempt "${command[@]}" || [ "$(error_kind)" = missing ] || die "$(advice)"
}

# Copies the files that git lists (also uncommitted ones, not ignored ones) to ~/vivit_jax on each worker. Files of the
# previous push that no longer exist are deleted; files that a run wrote there stay.
push() {
  local archive=$scratch/vivit_jax.tar.gz pack unpack
  [ "$dry_run" = 0 ] || archive=vivit_jax.tar.gz
  # shellcheck disable=SC2016
  pack='cd "$1" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d "" file; do [ ! -e "$file" ] || printf "%s\0" "$file"; done | tar --create --gzip --null --files-from=- --file="$2"'
  # shellcheck disable=SC2016
  unpack='mkdir -p vivit_jax && { [ ! -f vivit_jax.pushed.tar.gz ] || (tar -tzf vivit_jax.pushed.tar.gz | tr "\n" "\0" | (cd vivit_jax && xargs -0 rm -f)); } && mv vivit_jax.tar.gz vivit_jax.pushed.tar.gz && tar -xzf vivit_jax.pushed.tar.gz -C vivit_jax'
  perform bash -euo pipefail -c "$pack" pack "$root" "$archive"
  on_new_workers all true # the first ssh to a new VM
  attempt "${tpus[@]}" tpu-vm scp "$archive" "$name:vivit_jax.tar.gz" "${where[@]}" --worker=all --quiet \
    ${ssh_options[@]+"${ssh_options[@]}"} || die "the code was not copied: $(advice)"
  on_workers all "$unpack" || die "the code was not unpacked on every worker, see above"
}

setup() {
  on_new_workers all "$worker_script setup $(quoted "$extras")" ||
    die "the setup failed on a worker, see above. It needs the code ('push' first) and access to the package index: a VM without an external address needs Cloud NAT"
}

start_job() {
  on_new_workers all "$worker_script start $(quoted "${job[@]}")" ||
    die "the command was not started on every worker, see above; 'stop' stops it where it runs"
  [ "$dry_run" = 1 ] || say "started on all workers of $name; launch/tpu_vm.sh tail --name=$name --zone=$zone shows its output"
}

stop_job() { on_workers all "$worker_script stop"; }

# Prints the state of the command on all workers: none, running, done, unknown (no answer), or the largest exit code.
job_state() {
  local lines command
  set_ssh_command all "if [ -f vivit_jax/launch/tpu/worker.sh ]; then $worker_script state; else echo job: none; fi"
  lines=$(query "${command[@]}") || { echo unknown; return 0; }
  lines=$(printf '%s\n' "$lines" | grep '^job: ' || true)
  case "$lines" in
    *"exit "[1-9]*) printf '%s\n' "$lines" | sed -n 's/^job: exit //p' | sort -n | tail -n 1 ;;
    *running*) echo running ;;
    *none* | "") echo none ;;
    *) echo "done" ;;
  esac
}

begin() { push; setup; start_job; }

# Runs a function; where it fails, the script ends only if the TPU was not preempted meanwhile.
while_ready() { ("$@") || [ "$(tpu_state)" != ready ] || exit 1; }

# Creates what is missing, starts the command, and repeats until it has succeeded: on a new TPU after a preemption, up to
# $restarts times after a failure. The command resumes from its workdir.
watch() {
  local state code failed=0 unknown=0 command
  if [ "$dry_run" = 1 ]; then
    up
    say "# then, every $poll s until the command has ended on all workers with exit code 0:"
    set_ssh_command all "$worker_script state"
    quoted "${command[@]}"
    say "# and after a preemption, before all of the above again:"
    remove
    return 0
  fi
  while :; do
    state=$(tpu_state)
    case "$state" in ready | unknown) ;; *) unknown=0 ;; esac
    case "$state" in
      absent | waiting) create; continue ;; # an existing request is waited for
      preempted | failed)
        say "$(date -u +%H:%M:%S) $name: $state; creating it again, and the command resumes from its last checkpoint"
        remove
        create
        continue
        ;;
      unknown) wait_for_answer; continue ;;
    esac
    # The TPU is ready.
    code=$(job_state)
    [ "$code" = unknown ] || unknown=0
    case "$code" in
      none) while_ready begin ;;
      running) ;;
      done)
        say "the command has succeeded on all workers. 'launch/tpu_vm.sh delete' deletes the TPU"
        return 0
        ;;
      unknown)
        unknown=$((unknown + 1))
        [ "$unknown" -lt 30 ] || die "$name is ready, but its workers have not answered by ssh $unknown times"
        ;;
      2) show_log; die "wrong usage of the command (exit code 2), see its log above; it is not restarted" ;;
      75)
        say "$(date -u +%H:%M:%S) the run was stopped and has saved a checkpoint"
        # Usually the VM is about to be preempted, which its state shows shortly after.
        pause "$poll"
        [ "$(tpu_state)" != ready ] || { stop_job || true; while_ready start_job; }
        ;;
      *)
        # A preemption looks like a failure at first; and after a failure of one worker the others end within a minute.
        pause "$poll"
        [ "$(tpu_state)" = ready ] || continue
        failed=$((failed + 1))
        show_log
        [ "$failed" -le "$restarts" ] || die "the command has failed $failed times (exit code $code), see its log above; $name is kept: 'tail' and 'status' show more, 'delete' deletes it"
        say "exit code $code; restarting ($failed of $restarts)"
        stop_job || true
        while_ready start_job
        ;;
    esac
    pause "$poll"
  done
}

up() { create; begin; }

show_log() { on_workers all "tail -n 15 vivit_jax_job/log" || true; }

tail_log() { on_workers "$worker" "tail -n $lines -F vivit_jax_job/log"; }

status() {
  local state command
  if [ "$dry_run" = 1 ]; then
    print_state_queries
    set_ssh_command all "$worker_script state"
    quoted "${command[@]}"
    return 0
  fi
  state=$(tpu_state)
  echo "$name in $zone: $state"
  case "$state" in
    ready) echo "command: $(job_state)" ;;
    failed) die "$(tr '\n' ' ' <"$errors"): $(advice)" ;;
    unknown) die "$(tail -n 1 "$errors"): $(advice)" ;;
  esac
}

# Copies the run's folder from its bucket. Unchanged files are skipped.
fetch() {
  perform mkdir -p "$to"
  attempt gcloud storage rsync "$workdir" "$to" --recursive ${project:+"--project=$project"} ||
    die "$workdir was not copied: $(advice)"
}
