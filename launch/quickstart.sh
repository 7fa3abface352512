#!/usr/bin/env bash
# Trains and evaluates a ViViT from a fresh clone: environment, embedded data set, training, predictions.
# Can be run again at any time: finished parts are skipped, an interrupted training is resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: launch/quickstart.sh [--from_scratch] [--workdir DIR]

Creates .venv and installs vivit_jax in it, generates the embedded data set (data/moving_digits, real video files),
trains a small image model on its frames and from that a video model (configs/moving_digits.py), evaluates it with
several views and predicts two held-out videos.

  --from_scratch  without the image model, for comparison
  --workdir DIR   where checkpoints, logs and pictures go (default: runs/moving_digits, or runs/from_scratch)
  PYTHON=PATH     the Python to use, 3.11 to 3.13 (default: the newest of these on PATH)
TEXT
}

workdir='' from_scratch=''
while [ $# -gt 0 ]; do
  case "$1" in
    --workdir) [ $# -ge 2 ] || { usage >&2; exit 2; }; workdir=$2; shift 2 ;;
    --workdir=*) workdir=${1#*=}; shift ;;
    --from_scratch) from_scratch=1; shift ;;
    -h|--help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
done
[ -n "$workdir" ] || { workdir=runs/moving_digits; [ -z "$from_scratch" ] || workdir=runs/from_scratch; }

# shellcheck source=launch/environment.sh
source launch/environment.sh
make_environment .venv "[all]"

export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} TF_ENABLE_ONEDNN_OPTS=${TF_ENABLE_ONEDNN_OPTS:-0}
# Generates the videos and their records (data/moving_digits) if they are missing, trains, evaluates.
python -m vivit_jax.main --config=configs/moving_digits.py --workdir="$workdir" \
  ${from_scratch:+--config.init_from.image_epochs=0.0}

# Two videos of the validation split: the third column of its annotations.
clips=()
while IFS= read -r clip; do clips+=("$clip"); done < <(
  awk -F, 'NR == 2 || NR == 3 { print "data/moving_digits/videos/" $3 ".mp4" }' \
    data/moving_digits/annotations/EPIC_100_validation.csv
)
python -m vivit_jax.predict --workdir="$workdir" --pictures="$workdir/pictures" "${clips[@]}"

python - "$workdir" <<'PYTHON'
import json, pathlib, sys
workdir = pathlib.Path(sys.argv[1])
evaluation = json.loads((workdir / "evaluation.json").read_text())
metrics, (temporal, spatial) = evaluation["metrics"], evaluation["views"]
print(f"""
Held-out videos: {evaluation['videos']}, each seen in {temporal} x {spatial} views.
  verb top-1   {metrics['verb/top1']:.1%}
  noun top-1   {metrics['noun/top1']:.1%}
  action top-1 {metrics['action/top1']:.1%}

Checkpoint: {evaluation['checkpoint']}
Logs:       {workdir}/metrics.jsonl, and TensorBoard events in {workdir}
Pictures:   {workdir}/pictures/
Report:     {workdir}/report.html
Next, after `source .venv/bin/activate`:
  python -m vivit_jax.predict --workdir={workdir} YOUR_CLIP.mp4
  python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/model3 --config.model.attention=factorised_self_attention
  tensorboard --logdir=runs""")
PYTHON
