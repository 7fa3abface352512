#!/usr/bin/env bash
# Sourced by launch/tpu_vm.sh: what each of its sub-commands does. Settings are those of tpu_vm.sh.
# shellcheck disable=SC2154

# Waits once more, unless patience is at its end: `waited` counts the seconds since the TPU was asked for.
wait_for_capacity() {
  if [ "$waited" -ge "$patience" ]; then
    die "no TPU after $waited s: $(remedy capacity). --patience=SECONDS waits longer; 'watch' or 'create' goes on waiting, 'delete' gives the request up"
  fi
  say "$(date -u +%H:%M:%S) $1; asking again in $poll s (waited $waited of $patience s)"
  pause "$poll"
  waited=$((waited + poll))
}

create() {
  local tries=0 kind command=()
  create_command
  waited=0
  while :; do
    if attempt "${command[@]}"; then
      if [ "$dry_run" = 1 ]; then
        [ "$queue" = 0 ] || quoted "${tpus[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
        quoted "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" "--format=value(state)"
        return 0
      fi
      if await_ready; then return 0; fi
      continue # it was lost again while it was made
    fi
    kind=$(trouble)
    case "$kind" in
      exists)
        say "$name exists already; going on with it"
        if await_ready; then return 0; fi
        ;;
      capacity)
        [ "$market" != reserved ] || die "the reservation has no room for $gcloud_type: see 'gcloud compute tpus reservations list --zone=$zone', or leave --reserved out"
        wait_for_capacity "no capacity for $type in $zone"
        ;;
      transient)
        tries=$((tries + 1))
        [ "$tries" -lt 5 ] || die "$(remedy "$kind")"
        say "trying again in $poll s"
        pause "$poll"
        ;;
      *) die "$(remedy "$kind")" ;;
    esac
  done
}

# Waits until the TPU is ready: 0. Lost or refused for want of capacity: it is deleted, to be asked for anew: 1.
await_ready() {
  local state kind unknown=0
  while :; do
    state=$(tpu_state)
    case "$state" in
      ready)
        say "$name is ready"
        return 0
        ;;
      waiting) wait_for_capacity "$name is not ready yet" ;;
      failed)
        kind=$(trouble)
        say "the request failed: $(tr '\n' ' ' <"$errors")"
        case "$kind" in
          capacity | transient)
            remove
            wait_for_capacity "the request failed for want of capacity"
            return 1
            ;;
          *) die "$(remedy "$kind"). The failed request stays until it is deleted: launch/tpu_vm.sh delete" ;;
        esac
        ;;
      preempted)
        say "$name was preempted before it was ready"
        remove
        return 1
        ;;
      absent) die "$(remedy missing)" ;;
      *)
        no_answer
        ;;
    esac
  done
}

# gcloud did not tell the state: waits a little, unless waiting cannot help.
no_answer() {
  case "$(trouble)" in login | permission | disabled) die "$(remedy "$(trouble)")" ;; esac
  unknown=$((unknown + 1))
  [ "$unknown" -lt 30 ] || die "gcloud has not answered $unknown times: $(tail -n 1 "$errors")"
  pause "$poll"
}

# Deletes the TPU, and its request; without asking. That there is none is no error.
remove() {
  local command
  if [ "$queue" = 1 ]; then
    command=("${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet)
  else
    command=("${tpus[@]}" tpu-vm delete "$name" "${where[@]}" --quiet)
  fi
  attempt "${command[@]}" || [ "$(trouble)" = missing ] || die "$(remedy "$(trouble)")"
}

# Copies the code, as git sees it (also what is not committed, not what is ignored), to ~/vivit_jax on each worker. Files
# of the push before that are no longer there are removed; what a run wrote there stays.
push() {
  local archive pack unpack
  archive=vivit_jax.tar.gz
  [ "$dry_run" = 1 ] || archive=$scratch/vivit_jax.tar.gz
  # shellcheck disable=SC2016
  pack='cd "$1" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d "" file; do [ ! -e "$file" ] || printf "%s\0" "$file"; done | tar --create --gzip --null --files-from=- --file="$2"'
  # shellcheck disable=SC2016
  unpack='mkdir -p vivit_jax && { [ ! -f vivit_jax.pushed.tar.gz ] || (tar -tzf vivit_jax.pushed.tar.gz | tr "\n" "\0" | (cd vivit_jax && xargs -0 rm -f)); } && mv vivit_jax.tar.gz vivit_jax.pushed.tar.gz && tar -xzf vivit_jax.pushed.tar.gz -C vivit_jax'
  perform bash -euo pipefail -c "$pack" pack "$root" "$archive"
  # On a new machine this is the first that needs ssh.
  on_new_workers all true
  attempt "${tpus[@]}" tpu-vm scp "$archive" "$name:vivit_jax.tar.gz" "${where[@]}" --worker=all --quiet \
    ${ssh_options[@]+"${ssh_options[@]}"} || die "the code was not copied: $(remedy "$(trouble)")"
  on_workers all "$unpack" || die "the code was not unpacked on every worker, see above"
}

setup() {
  on_new_workers all "bash vivit_jax/launch/tpu/worker.sh setup $(quoted "$extras")" ||
    die "the setup failed on a worker, see above. It needs the code ('push' goes first) and a way to the package index: a VM without an external address needs Cloud NAT"
}

start_job() {
  on_new_workers all "bash vivit_jax/launch/tpu/worker.sh start $(quoted "${job[@]}")" ||
    die "the command was not started on every worker, see above; 'stop' ends it where it runs"
  [ "$dry_run" = 1 ] || say "started on all workers of $name; launch/tpu_vm.sh tail --name=$name --zone=$zone shows its output"
}

stop_job() { on_workers all "bash vivit_jax/launch/tpu/worker.sh stop"; }

# The command on all workers in one word: none, running, done, unknown (no answer), or the greatest exit code.
job_state() {
  local lines
  lines=$(ask "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet ${ssh_options[@]+"${ssh_options[@]}"} \
    "--command=if [ -f vivit_jax/launch/tpu/worker.sh ]; then bash vivit_jax/launch/tpu/worker.sh state; else echo job: none; fi") || {
    echo unknown
    return 0
  }
  lines=$(printf '%s\n' "$lines" | grep '^job: ' || true)
  if printf '%s\n' "$lines" | grep -Eq '^job: exit [1-9]'; then
    printf '%s\n' "$lines" | sed -n 's/^job: exit //p' | sort -n | tail -n 1
  elif printf '%s\n' "$lines" | grep -q '^job: running'; then
    echo running
  elif printf '%s\n' "$lines" | grep -q '^job: none' || [ -z "$lines" ]; then
    echo none
  else
    echo "done"
  fi
}

# Creates what is missing, starts the command, and keeps both going until it has ended well: after a preemption on a new
# TPU, after a failure again, up to $restarts times. The command resumes from its workdir.
watch() {
  local state found failed=0 unknown=0
  if [ "$dry_run" = 1 ]; then
    create
    push
    setup
    start_job
    say "# then, every $poll s until the command has ended on all workers with exit code 0:"
    quoted "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet "--command=bash vivit_jax/launch/tpu/worker.sh state"
    say "# and after a preemption, before all of the above again:"
    remove
    return 0
  fi
  while :; do
    state=$(tpu_state)
    case "$state" in
      absent) create; continue ;;
      preempted | failed)
        say "$(date -u +%H:%M:%S) $name: $state; making it anew, and the command goes on from its last checkpoint"
        remove
        create
        continue
        ;;
      waiting) create; continue ;; # "exists already": it waits, with patience
      unknown)
        no_answer
        continue
        ;;
      ready)
        found=$(job_state)
        case "$found" in
          none) push; setup; start_job; unknown=0 ;;
          running) unknown=0 ;;
          done)
            say "the command has ended well on all workers. launch/tpu_vm.sh delete gives the TPU back"
            return 0
            ;;
          unknown)
            unknown=$((unknown + 1))
            [ "$unknown" -lt 30 ] || die "$name is ready, but its workers have not answered by ssh $unknown times"
            ;;
          2) show_log; die "the command was refused as wrong usage (exit code 2), see its log above; it is not started again" ;;
          75)
            say "$(date -u +%H:%M:%S) the run was asked to stop and has saved"
            # Most likely the machine is about to be preempted: its state tells in a moment.
            pause "$poll"
            [ "$(tpu_state)" != ready ] || { stop_job; start_job; }
            ;;
          *)
            # A worker that fails ends the others within a minute; and a preemption looks like a failure at first.
            pause "$poll"
            [ "$(tpu_state)" = ready ] || continue
            failed=$((failed + 1))
            show_log
            [ "$failed" -le "$restarts" ] || die "the command has failed $failed times (exit code $found), see its log above; $name is kept: 'tail' and 'status' show more, 'delete' gives it back"
            say "exit code $found; starting it again ($failed of $restarts)"
            stop_job || true
            start_job
            ;;
        esac
        ;;
    esac
    pause "$poll"
  done
}

show_log() { on_workers all "tail -n 15 vivit_jax_job/log" || true; }

tail_log() { attempt "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$worker" --quiet ${ssh_options[@]+"${ssh_options[@]}"} "--command=tail -n $lines -F vivit_jax_job/log"; }

status() {
  if [ "$dry_run" = 1 ]; then
    [ "$queue" = 0 ] || quoted "${tpus[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
    quoted "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" "--format=value(state)"
    quoted "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --quiet "--command=bash vivit_jax/launch/tpu/worker.sh state"
    return 0
  fi
  local state
  state=$(tpu_state)
  echo "$name in $zone: $state"
  case "$state" in
    ready) echo "command: $(job_state)" ;;
    failed) die "$(tr '\n' ' ' <"$errors"): $(remedy "$(trouble)")" ;;
    unknown) die "$(tail -n 1 "$errors"): $(remedy "$(trouble)")" ;;
  esac
}

# Copies a run's folder from its bucket; what is here already and the same is not copied again.
fetch() {
  perform mkdir -p "$to"
  attempt gcloud storage rsync "$workdir" "$to" --recursive ${project:+"--project=$project"} ||
    die "$workdir was not fetched: $(remedy "$(trouble)")"
}
