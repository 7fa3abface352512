#!/usr/bin/env bash
# Runs vivit_jax.main on one or several TPU slices of a GKE cluster, as a JobSet. See docs/launch.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/shell.sh
source "$root/launch/shell.sh"

usage() {
  cat <<'TEXT'
usage: launch/gke.sh COMMAND --name=NAME [OPTIONS] [-- arguments of vivit_jax.main]

Commands
  image     build and push the container (launch/Dockerfile): --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/vivit_jax
  manifest  print the JobSet
  submit    apply the JobSet to the current cluster of kubectl
  xpk       print an equivalent xpk command: --cluster=NAME
  logs      follow the log of the first worker
  delete    delete the JobSet

Options
  --name=NAME        name of the JobSet
  --type=TYPE        v4-16, v5e-16, v5p-16, v6e-16, ...
  --image=IMAGE      container image
  --slices=N         number of slices of that type, default 1; several are connected by the data-centre network
  --spot             use Spot nodes: after a preemption the JobSet restarts and the run resumes
  --restarts=N       maximum restarts of the JobSet, default 20; those after a preemption count
  --account=NAME     Kubernetes service account with access to the bucket, default `default`
  --cluster=CLUSTER  cluster, for xpk
  --dry-run          print the commands without running them
  --help             show this help

The cluster needs JobSet (kubernetes-sigs/jobset) and a node pool of the type for each slice.
TEXT
}

name="" type="" image="" slices=1 spot=0 restarts=20 account=default cluster="" dry_run=0
job=()

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --name=* | --type=* | --image=* | --slices=* | --restarts=* | --account=* | --cluster=*) set_option "$1" ;;
      --spot) spot=1 ;;
      --dry-run) dry_run=1 ;;
      -h | --help) usage; exit 0 ;;
      --) shift; job=("$@"); return 0 ;;
      *) refuse "unknown argument $1 (arguments of vivit_jax.main go after --)" ;;
    esac
    shift
  done
}

check() {
  # Pod names append to the name and are limited to 63 characters.
  [ "$action" = image ] || [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    refuse "--name='$name' must be 1 to 40 lower-case letters, digits and hyphens, starting with a letter"
  case "$action" in logs | delete) return ;; esac
  [[ "$image" =~ ^[a-z0-9][a-z0-9./:_-]*(:[A-Za-z0-9_.-]+)?(@sha256:[0-9a-f]+)?$ ]] ||
    refuse "--image='$image' must be a container image, such as europe-west4-docker.pkg.dev/PROJECT/REPOSITORY/vivit_jax:1"
  [ "$action" != image ] || return 0
  check_numbers "slices=$slices" "restarts=$restarts"
  [ "$slices" -ge 1 ] || refuse "--slices=$slices must be at least 1"
  [ ${#job[@]} -gt 0 ] || refuse "$action needs arguments of vivit_jax.main after --: ... -- --config=configs/k400_vivit_l.py --workdir=gs://BUCKET/RUN"
  check_workdir "is lost with the container" "${job[@]}"
  set_topology
  [ "$slices" = 1 ] || [ "$nodes" -gt 1 ] || refuse "--slices=$slices of $type: several slices need several hosts each"
  [ "$action" != xpk ] || [ -n "$cluster" ] || refuse "xpk needs --cluster=NAME"
}

# Sets GKE's node label and topology, the number of nodes, and the chips of a node
# (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
set_topology() {
  local generation=${type%-*} size=${type##*-}
  [[ "$type" =~ ^[a-z0-9]+-[0-9]+$ ]] || refuse "--type='$type' must have the form v5e-16"
  xpk_type=$type
  case "$generation" in
    v5e | v5litepod) accelerator=tpu-v5-lite-podslice xpk_type=v5litepod-$size ;;
    v6e) accelerator=tpu-v6e-slice ;;
    v4) accelerator=tpu-v4-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    *) refuse "--type=$type: GKE offers v4, v5e, v5p and v6e; use launch/tpu_vm.sh for v2 and v3" ;;
  esac
  case "$generation" in
    v5e | v5litepod | v6e)
      chips=$size
      case "$size" in
        1) topology=1x1 ;; 4) topology=2x2 ;; 8) topology=2x4 ;; 16) topology=4x4 ;; 32) topology=4x8 ;;
        64) topology=8x8 ;; 128) topology=8x16 ;; 256) topology=16x16 ;;
        *) refuse "--type=$type: there is no slice of $size; choose one of 1 4 8 16 32 64 128 256" ;;
      esac
      ;;
    *)
      chips=$((size / 2))
      case "$size" in
        8) topology=2x2x1 ;; 16) topology=2x2x2 ;; 32) topology=2x2x4 ;; 64) topology=2x4x4 ;; 128) topology=4x4x4 ;;
        256) topology=4x4x8 ;; 512) topology=4x8x8 ;; 1024) topology=8x8x8 ;;
        *) refuse "--type=$type: the number counts cores, 2 a chip; choose one of 8 16 32 64 128 256 512 1024" ;;
      esac
      ;;
  esac
  # A host has 4 chips; slices of up to 8 chips of v5e and v6e are one host.
  chips_of_node=4
  case "$generation" in v5e | v5litepod | v6e) [ "$chips" -gt 8 ] || chips_of_node=$chips ;; esac
  nodes=$((chips / chips_of_node))
}

# A word as a double-quoted YAML string.
yaml() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

manifest() {
  local word tolerations="" selector=""
  if [ "$spot" = 1 ]; then
    selector='
                cloud.google.com/gke-spot: "true"'
    tolerations='
              tolerations:
                - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'
  fi
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    # One slice for each job of the set.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  # A failed or preempted pod ends the others, so all restart together; the run resumes from its workdir.
  failurePolicy: {maxRestarts: $restarts}
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $nodes # hosts of the slice
          completions: $nodes
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              serviceAccountName: $account
              # Seconds to save a checkpoint after SIGTERM; Spot nodes give 15 by default.
              terminationGracePeriodSeconds: 60
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology$selector$tolerations
              containers:
                - name: vivit-jax
                  image: $image
                  # No shell in between: the program itself gets SIGTERM. jax reads its process number from GKE's variables.
                  command: ["python", "-m", "vivit_jax.main"]
                  args:
YAML
  for word in "${job[@]}"; do
    printf '                    - %s\n' "$(yaml "$word")"
  done
  cat <<YAML
                  ports:
                    - {containerPort: 8471}
                    - {containerPort: 8080}
                  resources:
                    requests: {google.com/tpu: $chips_of_node}
                    limits: {google.com/tpu: $chips_of_node}
YAML
}

submit() {
  if [ "$dry_run" = 1 ]; then
    echo "kubectl apply --filename=- <<'YAML'"
    manifest
    echo YAML
    return 0
  fi
  manifest | kubectl apply --filename=- ||
    die "kubectl failed, see above. 'no matches for kind JobSet': install JobSet. 'forbidden': you need the role Kubernetes Engine Developer (roles/container.developer)"
}

xpk() {
  quoted xpk workload create "--cluster=$cluster" "--workload=$name" "--tpu-type=$xpk_type" "--num-slices=$slices" \
    "--docker-image=$image" "--max-restarts=$restarts" --restart-on-user-code-failure \
    --termination-grace-period-seconds=60 "--command=$(quoted python -m vivit_jax.main "${job[@]}")"
}

action=${1:---help}
[ $# -eq 0 ] || shift
case "$action" in
  -h | --help) usage; exit 0 ;;
  image | manifest | submit | xpk | logs | delete) ;;
  *) refuse "unknown command $action" ;;
esac
parse "$@"
check
case "$action" in
  image)
    perform docker build --platform=linux/amd64 --file="$root/launch/Dockerfile" --tag="$image" "$root"
    perform docker push "$image"
    ;;
  logs) perform kubectl logs --follow --tail=-1 "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  delete) perform kubectl delete jobset "$name" ;;
  *) "$action" ;;
esac
