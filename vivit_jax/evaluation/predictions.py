"""What an evaluation found of each video: labels, the five classes ranked highest, loss; and as a table in a file."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vivit_jax.evaluation import metrics
from vivit_jax.utils import tables

TOP = 5
FILE = "predictions.csv"
# Between the labels of a video that has several, and between verb and noun of an action.
SEVERAL, PAIRED = "; ", " "


@dataclasses.dataclass(frozen=True)
class HeadPredictions:
    """The videos as one head sees them, in the order of `Predictions.index`.

    Attributes:
      truth: int [N] class ids, or uint8 [N, C], 1 where a class is present, of a head with several labels at once. Of
        an action, the id of the pair: verb * nouns + noun.
      top: int [N, K], the K = 5 classes ranked highest (fewer where there are fewer), the highest first.
      probabilities: float32 [N, K], of `top`, in [0, 1]: softmax; of several labels at once, sigmoid.
      truth_probability: float32 [N], of the true class; of several, the mean of theirs; NaN where a video has none.
      rank: int [N], of the true class, 1 for the highest; of several, of the one ranked highest; 0 where there is none.
      loss: float32 [N], as `metrics.losses`; of an action, the sum of verb's and noun's.
    """

    truth: np.ndarray
    top: np.ndarray
    probabilities: np.ndarray
    truth_probability: np.ndarray
    rank: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Every video of an evaluation, by rising index.

    Attributes:
      index: int64 [N], places in the split.
      video: str [N], names of the videos, as in the records' index.
      counted: bool [N]; False: the video could not be read, and what is said of it means nothing.
      heads: {head: HeadPredictions}; with the heads `verb` and `noun`, `action` too.
    """

    index: np.ndarray
    video: np.ndarray
    counted: np.ndarray
    heads: Mapping[str, HeadPredictions]

    @classmethod
    def join(cls, batches: Sequence[Mapping[str, Any]], video_id: np.ndarray, heads: Sequence[str]) -> Predictions:
        """Batches of `of_batch`, fetched to the host, as one table: padding dropped, by rising index.

        Args:
          batches: of one evaluation, at least one.
          video_id: str [videos of the split], by index.
          heads: their order; an `action` comes last.
        """
        index = np.concatenate([batch["index"] for batch in batches])
        order = np.argsort(index, kind="stable")
        order = order[index[order] >= 0]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[order], *batches)
        # (jit hands dicts back with their keys sorted)
        found = {head: joined["heads"][head] for head in [*heads, metrics.ACTION] if head in joined["heads"]}
        tables = {head: HeadPredictions(**fields) for head, fields in found.items()}
        return cls(joined["index"], np.asarray(video_id)[joined["index"]], joined["mask"] > 0, tables)

    @property
    def loss(self) -> np.ndarray:
        """float32 [N]: the loss of each video, summed over the heads."""
        return sum(found.loss for head, found in self.heads.items() if head != metrics.ACTION)


def of_batch(
    logits: Mapping[str, jax.Array],
    labels: Mapping[str, jax.Array],
    mask: jax.Array,
    index: jax.Array,
    multi_label: Collection[str] = (),
    loss: str = "softmax",
) -> dict[str, Any]:
    """What is kept of a batch's videos; inside `jax.jit`.

    Args:
      logits: {head: [B, C]}, the average over the views.
      labels: {head: int [B]}, or float [B, C], 1 where a class is present.
      mask: [B], 0 for padding and for videos that could not be read.
      index: int [B], places in the split, -1 for padding.
      multi_label: heads whose videos have several labels at once.
      loss: 'softmax' or 'sigmoid', what the heads were trained with; decides over their probabilities and losses.

    Returns:
      `index`, `mask`, and `heads`: {head: the fields of HeadPredictions}.
    """
    heads = {head: _of_head(logits[head], labels[head], loss) for head in logits}
    if metrics.has_action({head: values.shape[-1] for head, values in logits.items()}, multi_label):
        first, second = metrics.PAIR
        truth = labels[first] * logits[second].shape[-1] + labels[second]
        # The scores of pairs are log-probabilities already, and softmax leaves those as they are.
        heads[metrics.ACTION] = _of_head(metrics.pair_scores(logits[first], logits[second]), truth, "softmax")
    return {"index": index, "mask": mask, "heads": heads}


def class_probabilities(logits: jax.Array, multi_label: bool, loss: str) -> jax.Array:
    """Returns probabilities of [..., C] logits: sigmoid for a multi-label head or the sigmoid loss, else softmax."""
    return jax.nn.sigmoid(logits) if multi_label or loss == "sigmoid" else jax.nn.softmax(logits)


def _of_head(logits: jax.Array, labels: jax.Array, loss: str) -> dict[str, jax.Array]:
    several = labels.ndim == 2
    probabilities = class_probabilities(logits, several, loss)
    _, top = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))
    if several:
        present = labels > 0
        any_present = present.any(axis=-1)
        highest = jnp.argmax(jnp.where(present, logits, -jnp.inf), axis=-1)
        rank = jnp.where(any_present, metrics.rank_of_true_class(logits, highest) + 1, 0)
        truth_probability = jnp.mean(probabilities, axis=-1, where=present)
        labels = present.astype(jnp.uint8)
    else:
        rank = metrics.rank_of_true_class(logits, labels) + 1
        truth_probability = jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
    return {
        "truth": labels,
        "top": top,
        "probabilities": jnp.take_along_axis(probabilities, top, axis=-1),
        "truth_probability": truth_probability,
        "rank": rank,
        "loss": metrics.losses(logits, present.astype(logits.dtype) if several else labels, loss),
    }


def write(path: epath.PathLike, predictions: Predictions, class_names: Mapping[str, Sequence[str]]) -> None:
    """Writes the table as CSV: a line for each video and head, by index.

    Columns: `index` (place in the split), `video`, `head`, `truth` (several labels with "; " between them),
    `prediction`, `probability` of the prediction, `truth_probability`, `rank` of the truth, `loss`, then
    `prediction_2`, `probability_2` to 5. A video that could not be read has only the first four.
    """
    width = max(found.top.shape[1] for found in predictions.heads.values())
    columns = ["index", "video", "head", "truth", "prediction", "probability", "truth_probability", "rank", "loss"]
    columns += [f"{what}_{k}" for k in range(2, width + 1) for what in ("prediction", "probability")]
    rows = []
    for row in range(len(predictions.index)):
        for head, found in predictions.heads.items():
            line = [
                int(predictions.index[row]),
                str(predictions.video[row]),
                head,
                _truth(found.truth[row], head, class_names),
            ]
            if predictions.counted[row]:
                ranked = [
                    (class_name(number, head, class_names), _short(probability))
                    for number, probability in zip(found.top[row], found.probabilities[row], strict=True)
                ]
                line += [
                    *ranked[0],
                    _short(found.truth_probability[row]),
                    int(found.rank[row]),
                    _short(found.loss[row]),
                ]
                line += [x for pair in ranked[1:] for x in pair]
            rows.append(line + [""] * (len(columns) - len(line)))
    epath.Path(path).write_text(tables.to_csv(columns, rows))


def read(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The lines of a file of `write`, as dicts.

    Yields:
      `index` int, `video`, `head`, `truth` str, `ranked` [(class, probability), ...] (empty for a video that could not
      be read, which has nothing of what follows), `truth_probability` float, `rank` int, `loss` float.
    """
    for line in csv.DictReader(io.StringIO(epath.Path(path).read_text())):
        row = {name: line[name] for name in ("video", "head", "truth")} | {"index": int(line["index"]), "ranked": []}
        if line["prediction"]:
            row["ranked"] = [(line["prediction"], float(line["probability"]))]
            for k in range(2, TOP + 1):
                if line.get(f"prediction_{k}"):
                    row["ranked"].append((line[f"prediction_{k}"], float(line[f"probability_{k}"])))
            row |= {name: float(line[name]) for name in ("truth_probability", "loss")} | {"rank": int(line["rank"])}
        yield row


def class_name(number: int, head: str, class_names: Mapping[str, Sequence[str]]) -> str:
    """Returns the name of a class id, of an action "verb noun"."""
    if head in class_names:
        return str(class_names[head][number])
    first, second = (class_names[part] for part in metrics.PAIR)
    return f"{first[number // len(second)]}{PAIRED}{second[number % len(second)]}"


def _truth(truth: np.ndarray, head: str, class_names: Mapping[str, Sequence[str]]) -> str:
    numbers = np.flatnonzero(truth) if np.ndim(truth) else [int(truth)]
    return SEVERAL.join(class_name(number, head, class_names) for number in numbers)


def _short(value: float) -> str:
    """Six digits are more than float32's sums are good for; 'nan' where there is no number."""
    return f"{float(value):.6g}" if math.isfinite(value) else str(float(value))
