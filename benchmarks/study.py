"""The study on the embedded data set: runs the unfinished rows, times the steps, writes docs/study.md.

    python benchmarks/study.py --workdir=runs/study --seeds=0,1,2

About three hours on two CPU cores, estimated from single runs (most take 100 s, with compiled programs cached);
`vivit_jax.sweep` can run rows side by side, one process for each core. The same command continues an interrupted study.
`--report-only` writes the document from the finished runs, and with `--recorded=docs/study/runs.csv` also from the runs
in that file. Sentences about the order of rows are computed: two rows are ordered only if their means differ by more
than twice the standard error of the difference.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import io
import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from vivit_jax import optim
from vivit_jax import sweep as sweeps
from vivit_jax.data.moving_digits import VERBS
from vivit_jax.evaluation import predictions
from vivit_jax.evaluation.results import RESULT_FILE
from vivit_jax.models import ViViT
from vivit_jax.sweep import run_all
from vivit_jax.train_step import TrainState, make_train_step
from vivit_jax.utils import devices, logs, plots, tables

CONFIG = "configs/study.py"
HEADS = {"verb": 8, "noun": 10}
METRICS = ("action/top1", "verb/top1", "noun/top1")


@dataclasses.dataclass(frozen=True)
class Question:
    """One table or figure of the paper, repeated on the embedded data set.

    Attributes:
      title, text: heading, and what is compared.
      rows: {row of the sweep: (label, published accuracy in percent, or None)}.
      orders: lists of rows, each from best to worst, that the paper orders without giving numbers.
    """

    title: str
    text: str
    rows: Mapping[str, tuple[str, float | None]]
    orders: Sequence[Sequence[str]] = ()


QUESTIONS = (
    Question(
        "Table 1: input encoding",
        "Model 1. Published: ViT-B on Kinetics-400.",
        {
            "uniform_frames": ("uniform frame sampling", 78.5),
            "tubelet_random": ("tubelet, random", 73.2),
            "tubelet_filter_inflation": ("tubelet, filter inflation", 77.6),
            "model1": ("tubelet, central frame", 79.2),
        },
    ),
    Question(
        "Table 2: the models",
        "At equal width. Published: ViT-B on EPIC-Kitchens-100, whose actions are a verb and a noun, as here. On "
        "Kinetics-400, which is larger, the paper has Model 1 first: 80.0, 78.8, 77.4, 76.3, 75.8.",
        {
            "model1": ("1 spatio-temporal", 43.1),
            "model2": ("2 factorised encoder", 43.7),
            "model3": ("3 factorised self-attention", 39.1),
            "model4": ("4 factorised dot-product", 39.5),
            "average_pool": ("2 with average pooling", 38.8),
        },
    ),
    Question(
        "Positions: repeated, or with a vector for each time",
        "Not in the paper. Section 3.4 repeats the positions of an image model for each time (*repeated*), so that all "
        "times start equal; those of Model 2's temporal encoder are N(0, 0.02). All other rows of this study add a "
        "random vector of standard deviation 2 for each time (`model.temporal_position_std`).",
        {
            "model1_published": ("Model 1, repeated", None),
            "model1": ("Model 1, a vector for each time", None),
            "model2_published": ("Model 2, repeated", None),
            "model2": ("Model 2, a vector for each time", None),
            "model3_published": ("Model 3, repeated", None),
            "model3": ("Model 3, a vector for each time", None),
            "model4_published": ("Model 4, repeated", None),
            "model4": ("Model 4, a vector for each time", None),
            "uniform_frames_published": ("uniform frame sampling, repeated", None),
            "uniform_frames": ("uniform frame sampling, a vector for each time", None),
        },
    ),
    Question(
        "Table 3: temporal layers of Model 2",
        "Three spatial layers. Published: twelve, with 0, 1 and 4 temporal layers on Kinetics-400.",
        {
            "average_pool": ("0", 75.8),
            "temporal_layers_1": ("1", 78.6),
            "model2": ("2", None),
            "temporal_layers_4": ("4", 78.8),
        },
    ),
    Question(
        "Table 4: regularisation, row by row",
        "Model 2 on 300 training videos, 160 epochs. Published: EPIC-Kitchens-100, action top-1, where *+ image model* "
        "starts from Kinetics-400; here from the image model, with layer-wise decay of the learning rate. The two rows "
        "above it are from scratch. A flip that turns a motion into another one also changes the label. The first row "
        "is not in the paper, nor are more epochs.",
        {
            "few_none": ("centre crop, nothing else", None),
            "few_crop_flip_colour": ("random crop, flip, colour jitter", 38.4),
            "few_image_model": ("+ image model", 39.6),
            "few_stochastic_depth": ("+ stochastic depth", 40.2),
            "few_rand_augment": ("+ RandAugment", 41.1),
            "few_label_smoothing": ("+ label smoothing", 43.1),
            "few_mixup": ("+ mixup", 43.7),
            "few_image_model_long": ("image model, 480 epochs", None),
            "few_mixup_long": ("all regularisers, 480 epochs", None),
        },
    ),
    Question(
        "Figure 8: tubelet length",
        "Shorter tubelets give more tokens. The paper finds that accuracy increases with the tokens for every model.",
        {
            "model1_t4": ("Model 1, t = 4", None),
            "model1": ("Model 1, t = 8", None),
            "model1_t16": ("Model 1, t = 16", None),
            "model2_t4": ("Model 2, t = 4", None),
            "model2": ("Model 2, t = 8", None),
            "model2_t16": ("Model 2, t = 16", None),
        },
        orders=[["model1_t4", "model1", "model1_t16"], ["model2_t4", "model2", "model2_t16"]],
    ),
    Question(
        "Figure 9: frames at constant tokens, against views",
        "Model 2 on every frame of a clip. The tubelet length grows with the clip, so that there are always 32 "
        "tokens. The paper finds that more frames are better, and that accuracy saturates once the views cover the "
        "whole video.",
        {
            "frames_8": ("8 frames, t = 4", None),
            "frames_16": ("16 frames, t = 8", None),
            "frames_32": ("32 frames, t = 16", None),
        },
        orders=[["frames_32", "frames_16", "frames_8"]],
    ),
)
INTRODUCTION = (
    "The rows are those of [configs/study.py](../configs/study.py). 2,400 training and 480 held-out videos of "
    "`moving_digits`: eight motions (verb) in four time-reversed pairs, ten handwritten digits (noun), both together "
    "the action. Models of width 96 and three layers, which average the tokens (gap), 1,500 steps of 32 clips. Where "
    "nothing else is said they start from an image model of the same width (section 3.4, central frame), which was "
    "trained on single frames of the training videos, as the paper's start from ImageNet-21k. Accuracies are top-1 "
    "in percent on the held-out videos, mean ± standard deviation over the seeds; chance is 12.5 (verb), 10 (noun), "
    "1.25 (action). MFLOPs are 10^6 multiply-adds of the forward pass of a clip. *Published* is the paper's number, "
    "on other data with larger models: only the order of the rows can be compared. Two rows differ if their means "
    "differ by more than two standard errors."
)
REVERSALS = (
    "A motion and its reversal have the same frames. If each token sees one frame (*average pool uniform frames*), the "
    "average over frames cannot distinguish them: at most half of the verbs whose pair is right can be right. Tubelets "
    "of eight frames see simple motions by themselves, and the parts of compound motions, but not which part is first "
    "(*average pool*)."
)
TIMES = (
    "Two CPU cores, batches of 32, medians; the models alternate, so that noise of the machine affects all of them. "
    "The published times are forward passes of ViT-B on a TPU v3, where Model 1 attends to 3,137 tokens instead of 32."
)
CONCLUSIONS = "## Conclusions"
ONCE = re.compile(r".*_(published|long)|uniform_frames_t4")  # rows that explain others: the first seed only
TIMED = ("model1", "model2", "model3", "model4", "average_pool")


def compare(results: Sequence[sweeps.Result], first: str, second: str, metric: str) -> int | None:
    """Returns 1 if `first` is better than `second` by more than two standard errors, -1 if worse, 0 if neither.

    None if either has fewer than two seeds.
    """
    values = [[r.metrics[metric] for r in results if r.row == row and metric in r.metrics] for row in (first, second)]
    if min(map(len, values)) < 2:
        return None
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in values))
    difference = statistics.fmean(values[0]) - statistics.fmean(values[1])
    return 0 if abs(difference) <= 2 * error else int(math.copysign(1, difference))


def pairs_by_order(results: Sequence[sweeps.Result], question: Question, metric: str) -> dict[str, list[str]]:
    """Returns the pairs of rows that the paper orders, by their order here: 'agree', 'disagree' or 'open'.

    Pairs without two seeds are left out.
    """
    published = {row: value for row, (_, value) in question.rows.items() if value is not None}
    pairs = [(a, b) for a, b in itertools.permutations(published, 2) if published[a] > published[b]]
    for rows in question.orders:
        pairs += itertools.combinations(rows, 2)
    counts: dict[str, list[str]] = {"agree": [], "disagree": [], "open": []}
    for ahead, behind in pairs:
        ours = compare(results, ahead, behind, metric)
        if ours is not None:
            name = f"{question.rows[ahead][0]} over {question.rows[behind][0]}"
            counts[{1: "agree", -1: "disagree", 0: "open"}[ours]].append(name)
    return counts


def agreement(counts: Mapping[str, Sequence[str]], metric: str, *, named: bool = True) -> str:
    """Returns a sentence on the order of the pairs that `pairs_by_order` found; `named`: with those that disagree."""
    if not (pairs := sum(map(len, counts.values()))):
        return ""
    text = f"{metric}: of {pairs} pairs of rows that the paper orders, {len(counts['agree'])} have its order here, "
    text += f"{len(counts['disagree'])} the opposite order, {len(counts['open'])} no significant order."
    if named and counts["disagree"]:
        text += f" Opposite to the paper's order: {'; '.join(counts['disagree'])}."
    return text


def table(results: Sequence[sweeps.Result], question: Question) -> str:
    """Returns the table of a question: accuracies in percent, mean ± standard deviation over the seeds."""
    rows = []
    for row, (label, published) in question.rows.items():
        runs = [result for result in results if result.row == row]
        values = [sweeps.mean_and_deviation(runs, row, f"{head}/top1") for head in ("verb", "noun", "action")]
        cells = [label, *map(sweeps.format_cell, values), "" if published is None else f"{published:.1f}"]
        size = [f"{runs[0].parameters:,}", f"{1e3 * runs[0].gflops:.1f}", len(runs)] if runs else ["", "", 0]
        rows.append([*cells, *size])
    header = ["", "verb", "noun", "action", "published", "parameters", "MFLOPs", "seeds"]
    return tables.to_markdown(header, rows)


def reversed_motions(runs: Sequence[sweeps.Run]) -> str:
    """Returns a table of how often each model distinguishes a motion from its reversal, from `predictions.csv`."""
    rows = []
    for row in (*TIMED, "average_pool_uniform_frames"):
        shares = []
        for run in runs:
            path = run.workdir / predictions.FILE
            if run.row == row and path.exists():
                verbs = [e for e in predictions.read(path) if e["head"] == "verb" and e["ranked"]]
                truth = np.array([VERBS.index(e["truth"]) for e in verbs])
                predicted = np.array([VERBS.index(e["ranked"][0][0]) for e in verbs])
                right, pair = truth == predicted, truth // 2 == predicted // 2
                compound = np.array(["-then-" in verb for verb in VERBS])[truth]
                among = (right[pair & kind].mean() for kind in (~compound, compound))
                shares.append((right.mean(), pair.mean(), *among))
        if shares:
            rows.append([row.replace("_", " "), *(f"{100 * value:.1f}" for value in np.mean(shares, axis=0))])
    header = ["", "verb right", "verb or its reversal right", "of these right: simple motions", "compound motions"]
    return tables.to_markdown(header, rows)


def views(runs: Sequence[sweeps.Run], rows: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Returns {row: [(temporal views, mean verb top-1)]}, from the `evaluation.json` of the runs."""
    found: dict[str, dict[int, list[float]]] = {row: collections.defaultdict(list) for row in rows}
    for run in runs:
        path = run.workdir / RESULT_FILE
        if run.row in found and path.exists():
            for part in json.loads(path.read_text()).get("by_temporal_views", []):
                found[run.row][part["temporal_views"]].append(part["metrics"]["verb/top1"])
    return {row: [(n, statistics.fmean(v)) for n, v in sorted(by.items())] for row, by in found.items() if by}


def step_times(runs: Sequence[sweeps.Run], repeats: int) -> dict[str, tuple[float, float]]:
    """Returns {row: (ms of a training step of 32 clips, ms of a forward pass)}, medians; the models alternate."""
    devices.keep_freed_memory()  # as training does
    programs = {}
    for row in TIMED:
        experiment = next(run.experiment for run in runs if run.row == row)
        model = ViViT(experiment.model_config(HEADS))
        optimizer = optim.make_optimizer(experiment.optimizer, lambda step: 1e-3)
        rng = np.random.default_rng(0)
        batch = {
            "video": rng.integers(0, 256, (experiment.batch_size, *model.config.video_shape), dtype=np.uint8),
            "label": {head: np.zeros(experiment.batch_size, np.int32) for head in HEADS},
            "mask": np.ones(experiment.batch_size, np.float32),
        }
        video = np.asarray(batch["video"], np.float32) / 127.5 - 1
        state = TrainState.create(model.init(jax.random.key(0), video[:1])["params"], optimizer)
        step = jax.jit(make_train_step(model.apply, optimizer, lambda step: 1e-3))
        forward = jax.jit(lambda params, video, model=model: model.apply({"params": params}, video))
        programs[row] = ((step, (state, batch)), (forward, (state.params, video)))
    times: dict[str, list[list[float]]] = {row: [[], []] for row in TIMED}
    for repeat in range(repeats + 1):
        for row, pair in programs.items():
            for kind, (program, arguments) in enumerate(pair):
                start = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                if repeat:  # the first compiles
                    times[row][kind].append(1e3 * (time.perf_counter() - start))
    return {row: tuple(statistics.median(kind) for kind in kinds) for row, kinds in times.items()}


def times_table(times: Mapping[str, Sequence[float]]) -> str:
    """Returns a table of step times, with the ratio to Model 2."""
    published = {"model1": 58.9, "model2": 17.4, "model3": 31.7, "model4": 22.9, "average_pool": 17.3}
    base, rows = times["model2"], []
    for row, (step, forward) in times.items():
        ratios = [f"{step:.0f}", f"{step / base[0]:.2f}", f"{forward:.0f}", f"{forward / base[1]:.2f}"]
        rows.append([row.replace("_", " "), *ratios, f"{published[row] / published['model2']:.2f}"])
    header = ["", "step ms", "ratio to Model 2", "forward ms", "ratio to Model 2", "published ratio"]
    return tables.to_markdown(header, rows)


def plot(results: Sequence[sweeps.Result], question: Question, by_views: Mapping, path: epath.Path) -> None:
    """Plots verb, noun and action of a question's rows with standard deviations; for Figure 9 also the views."""
    size = 10 if by_views else 7, 0.9 + 0.55 * len(question.rows)
    with plots.drawing(1, 2 if by_views else 1, figsize=size, layout="constrained") as (figure, panels):
        axes = np.ravel(panels)[0]
        for i, head in enumerate(("verb", "noun", "action")):
            values = [sweeps.mean_and_deviation(results, row, f"{head}/top1") for row in question.rows]
            known = [(y, *value) for y, value in enumerate(values) if value is not None]
            if known:
                rows, means, deviations = zip(*known, strict=True)
                axes.barh(
                    [y + 0.26 * (i - 1) for y in rows], [100 * m for m in means], 0.24,
                    xerr=[100 * (s or 0) for s in deviations], capsize=2, label=head,
                )  # fmt: skip
        axes.set_yticks(range(len(question.rows)), [label for label, _ in question.rows.values()])
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel="top-1, percent")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        axes = np.ravel(panels)[-1]
        for row, points in by_views.items():
            axes.plot([n for n, _ in points], [100 * v for _, v in points], marker="o", label=question.rows[row][0])
        if by_views:
            axes.set(xlabel="temporal views", ylabel="verb top-1, percent")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    plots.save(figure, path)


def recorded(path: str) -> dict[tuple[str, int], sweeps.Result]:
    """Returns {(row, seed): result} of the successful runs in a file that `sweeps.to_csv` wrote."""
    runs = {}
    for line in csv.DictReader(io.StringIO(epath.Path(path).read_text())):
        row, seed, parameters, gflops, failure = (
            line.pop(x) for x in ("row", "seed", "parameters", "gflops", "failure")
        )
        if not failure:
            metrics = {name: float(value) for name, value in line.items() if value}
            runs[row, int(seed)] = sweeps.Result(row, int(seed), metrics, int(parameters), float(gflops))
    return runs


def document(runs: Sequence[sweeps.Run], results: Sequence[sweeps.Result], times: Mapping, folder: epath.Path) -> str:
    """Returns the text of docs/study.md; writes its plots to `folder`."""
    done = [found for found in results if not found.failure]
    seeds = sorted({found.seed for found in done})
    source = f"Written by `python benchmarks/study.py` from {len(done)} runs, seeds {', '.join(map(str, seeds))}."
    lines = ["# The study: the paper's tables and figures on the embedded data set", "", f"{source} {INTRODUCTION}", ""]
    totals: dict[str, dict[str, list[str]]] = {m: collections.defaultdict(list) for m in METRICS}
    for question in QUESTIONS:
        rows = {row: label for row, label in question.rows.items() if any(found.row == row for found in done)}
        question = dataclasses.replace(question, rows=rows)
        name = question.title.partition(":")[0].lower().replace(" ", "")
        by_views = views(runs, list(question.rows)) if name == "figure9" else {}
        plot(done, question, by_views, folder / f"{name}.png")
        lines += [f"## {question.title}", "", question.text, "", table(done, question), ""]
        for metric, total in totals.items():
            counts = pairs_by_order(done, question, metric)
            lines += [line] if (line := agreement(counts, metric)) else []
            for order, names in counts.items():
                total[order] += names
        lines += ["", f"![{question.title}]({folder.name}/{name}.png)", ""]
        if name == "table2":
            lines += ["### Motions and their reversals", "", reversed_motions(runs), "", REVERSALS, ""]
            if times:
                lines += ["### Time of a step", "", TIMES, "", times_table(times), ""]
    summary = [
        f"* All tables, {agreement(total, m, named=False)}" for m, total in totals.items() if any(total.values())
    ]
    return "\n".join([*lines[:4], *summary, "", *lines[4:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="docs/study.md")
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE, an override for every row")
    parser.add_argument("--report-only", action="store_true", help="write the document only")
    parser.add_argument("--recorded", help="runs.csv with results of runs that are not in the workdir")
    parser.add_argument("--repeats", type=int, default=15, help="repeats of the timing")
    options = parser.parse_args()
    logs.configure_logging()
    module = sweeps.load_sweep(CONFIG)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs = sweeps.plan(module, options.workdir, seeds=seeds, overrides=sweeps.parse_overrides(options.set))
    times_file = epath.Path(options.workdir) / "step_times.json"
    if options.report_only:
        known = recorded(options.recorded) if options.recorded else {}
        found = [sweeps.load_result(run) or known.get((run.row, run.seed)) for run in runs]
        results = [result for result in found if result is not None]
    else:
        results = []
        for found in run_all([run for run in runs if run.seed == seeds[0] or not ONCE.fullmatch(run.row)]):
            results.append(found)
            sweeps.write(results, options.workdir, "study")
        times_file.write_text(json.dumps(step_times(runs, options.repeats)))
    times = json.loads(times_file.read_text()) if times_file.exists() else {}
    out = epath.Path(options.out)
    folder = out.parent / out.stem
    folder.mkdir(parents=True, exist_ok=True)
    # The conclusions are written by hand: they stay.
    kept = out.read_text().partition(CONCLUSIONS)[1:] if out.exists() else ()
    out.write_text("\n".join([document(runs, results, times, folder), "".join(kept)]))
    (folder / "runs.csv").write_text(sweeps.to_csv(results))


if __name__ == "__main__":
    main()
