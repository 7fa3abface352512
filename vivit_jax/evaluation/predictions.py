"""Per-video predictions of an evaluation: labels, the five top-ranked classes, loss; written and read as CSV."""

import csv
import dataclasses
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vivit_jax.evaluation import metrics
from vivit_jax.utils import storage, tables

TOP = 5
FILE = "predictions.csv"
LABEL_SEPARATOR = "; "  # between the labels of a multi-label video
ACTION_SEPARATOR = " "  # between verb and noun


@dataclasses.dataclass(frozen=True)
class HeadPredictions:
    """The predictions of one head, in the order of `Predictions.index`; top-ranked are K = 5 classes, or all.

    Of an action, `truth` is the id of the pair, verb * number of nouns + noun, and `loss` the sum of verb's and noun's.
    """

    truth: np.ndarray  # int [N] class ids, or multi-label uint8 [N, C], 1 where a class is present
    top: np.ndarray  # int [N, K], the highest class first
    probabilities: np.ndarray  # float32 [N, K], of `top`: softmax; sigmoid of a multi-label head
    truth_probability: np.ndarray  # float32 [N]; multi-label, the mean over the true classes, NaN without any
    rank: np.ndarray  # int [N], 1 for the highest; multi-label, of the highest true class, 0 without any
    loss: np.ndarray  # float32 [N], see `metrics.losses`


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions for the N videos of an evaluation, by rising index in the split."""

    index: np.ndarray  # int64 [N]
    video: np.ndarray  # str [N], names as in the index of the records
    counted: np.ndarray  # bool [N]; False where the video could not be read, and its predictions are meaningless
    heads: Mapping[str, HeadPredictions]  # with the heads `verb` and `noun`, `action` too

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], video_id: np.ndarray, heads: Sequence[str]) -> Self:
        """Makes the table from an output of `sort_by_index`, the names of all videos of the split, and its heads."""
        # In this order: jit returns dicts with sorted keys.
        names = [head for head in [*heads, metrics.ACTION] if head in arrays["heads"]]
        tables = {head: HeadPredictions(**arrays["heads"][head]) for head in names}
        return cls(arrays["index"], np.asarray(video_id)[arrays["index"]], arrays["mask"] > 0, tables)


def sort_by_index(batches: Sequence[Any]) -> Any:
    """Joins fetched outputs of `of_batch`, to which arrays [B, ...] may be added: by rising index, without padding."""
    index = np.concatenate([batch["index"] for batch in batches])
    order = np.argsort(index, kind="stable")
    order = order[index[order] >= 0]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[order], *batches)


def of_batch(logits: Mapping[str, jax.Array], batch: Mapping[str, Any], loss: str = "softmax") -> dict[str, Any]:
    """Returns `index`, `mask` and `heads`, {head: the fields of HeadPredictions}, of a batch; for use inside `jax.jit`.

    Args:
      logits: {head: [B, C]}, averaged over the views.
      batch: `label` {head: int [B]}, or multi-label float [B, C], 1 where a class is present; `mask` [B], 0 for padding
        and unreadable videos; `index` int [B], in the split, -1 for padding.
      loss: 'softmax' or 'sigmoid', with which the heads were trained; selects their probabilities and losses.
    """
    labels = batch["label"]
    multi_label = [head for head in logits if labels[head].ndim == 2]
    heads = {head: _of_head(logits[head], labels[head], loss) for head in logits}
    if metrics.has_action(logits, multi_label):
        heads[metrics.ACTION] = _of_head(*metrics.scores_and_truth(metrics.ACTION, logits, labels), "softmax")
    return {"index": batch["index"], "mask": batch["mask"], "heads": heads}


def _of_head(logits: jax.Array, labels: jax.Array, loss: str) -> dict[str, jax.Array]:
    multi_label = labels.ndim == 2
    _, top = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))
    probabilities = jax.nn.sigmoid(logits) if multi_label or loss == "sigmoid" else jax.nn.softmax(logits)
    if multi_label:
        present = labels > 0
        highest = jnp.argmax(jnp.where(present, logits, -jnp.inf), axis=-1)
        rank = jnp.where(present.any(axis=-1), metrics.rank_of_true_class(logits, highest) + 1, 0)
        truth_probability = jnp.mean(probabilities, axis=-1, where=present)
        truth, targets = present.astype(jnp.uint8), present.astype(logits.dtype)
    else:
        rank = metrics.rank_of_true_class(logits, labels) + 1
        truth_probability = jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
        truth = targets = labels
    return {
        "truth": truth,
        "top": top,
        "probabilities": jnp.take_along_axis(probabilities, top, axis=-1),
        "truth_probability": truth_probability,
        "rank": rank,
        "loss": metrics.losses(logits, targets, loss),
    }


def rank_labels(
    logits: Mapping[str, jax.Array],
    class_names: Mapping[str, Sequence[str]],
    number: int,
    multi_label: Collection[str] = (),
    loss: str = "softmax",
) -> dict[str, list[tuple[str, float]]]:
    """Ranks the labels of one video, and with the heads `verb` and `noun` those of `action`.

    Takes {head: logits [C]}, and `loss` as `of_batch`; returns {head: [(label, probability), ...]}, at most `number`.
    """
    ranked, scores = {}, {head: np.asarray(logits[head], np.float64) for head in logits}
    if metrics.has_action(logits, multi_label):
        scores[metrics.ACTION] = np.add.outer(*(scores[head] for head in metrics.PAIR)).ravel()
    for head, of_head in scores.items():
        top = np.argsort(-of_head, kind="stable")[:number]
        if head in multi_label or (loss == "sigmoid" and head in logits):
            probabilities = np.exp(-np.logaddexp(0, -of_head))
        else:
            probabilities = np.exp(of_head - np.logaddexp.reduce(of_head))
        ranked[head] = [(_class_name(i, head, class_names), float(probabilities[i])) for i in top]
    return ranked


def write(path: epath.PathLike, predictions: Predictions, class_names: Mapping[str, Sequence[str]]) -> None:
    """Writes the predictions as CSV, by index, with one line for each video and head.

    Columns: `index`, `video`, `head`, `truth` (labels separated by "; "), `prediction` and its `probability`,
    `truth_probability`, `rank` of the truth, `loss`, then `prediction_2`, `probability_2` to 5. Those after `truth` are
    empty for an unreadable video. Numbers have six digits, the precision of float32 sums.
    """
    width = max(table.top.shape[1] for table in predictions.heads.values())
    columns = ["index", "video", "head", "truth", "prediction", "probability", "truth_probability", "rank", "loss"]
    columns += [f"{name}_{k}" for k in range(2, width + 1) for name in ("prediction", "probability")]
    lines = []
    for row in range(len(predictions.index)):
        for head, table in predictions.heads.items():
            truth = table.truth[row]
            labels = np.flatnonzero(truth) if np.ndim(truth) else [int(truth)]
            line = [int(predictions.index[row]), str(predictions.video[row]), head]
            line.append(LABEL_SEPARATOR.join(_class_name(label, head, class_names) for label in labels))
            if predictions.counted[row]:
                ranked: list[Any] = []
                for label, probability in zip(table.top[row], table.probabilities[row], strict=True):
                    ranked += [_class_name(label, head, class_names), f"{probability:.6g}"]
                scores = [f"{table.truth_probability[row]:.6g}", int(table.rank[row]), f"{table.loss[row]:.6g}"]
                line += ranked[:2] + scores + ranked[2:]
            lines.append(line + [""] * (len(columns) - len(line)))
    storage.write(path, tables.to_csv(columns, lines))


def read(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file of `write`: `index`, `video`, `head`, `truth`, `ranked` [(class, probability), ...].

    Unless `ranked` is empty because the video could not be read, also `truth_probability`, `rank` and `loss`.
    """
    for line in csv.DictReader(io.StringIO(epath.Path(path).read_text(encoding="utf-8"))):
        row: dict[str, Any] = {name: line[name] for name in ("video", "head", "truth")} | {"index": int(line["index"])}
        suffixes = [suffix for suffix in ("", "_2", "_3", "_4", "_5") if line.get(f"prediction{suffix}")]
        row["ranked"] = [(line[f"prediction{suffix}"], float(line[f"probability{suffix}"])) for suffix in suffixes]
        if row["ranked"]:
            row |= {name: float(line[name]) for name in ("truth_probability", "loss")} | {"rank": int(line["rank"])}
        yield row


def _class_name(label: int, head: str, class_names: Mapping[str, Sequence[str]]) -> str:
    if head in class_names:
        return str(class_names[head][label])
    verbs, nouns = (class_names[part] for part in metrics.PAIR)
    return f"{verbs[label // len(nouns)]}{ACTION_SEPARATOR}{nouns[label % len(nouns)]}"
