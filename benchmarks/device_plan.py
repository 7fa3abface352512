"""The rows of `benchmarks.device`, the goals, and the table at its end."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks import subjects

CLIP = {"num_frames": 32, "image_size": 224, "num_classes": 400, "dtype": "bfloat16"}
RESIDUAL = {"residual_dtype": "bfloat16"}
CUDNN, XLA = {"attention_backend": "cudnn"}, {"attention_backend": "xla"}
SCAN = {"scan_layers": True}
MODEL_1, MODEL_2, MODEL_3, MODEL_4, AVERAGE = subjects.MODELS
# (kind, model, name) -> lowest MFU aimed at; highest ms of one clip's forward pass; lowest ratio to the peer's speed.
MFU_GOALS = {
    ("train", MODEL_1, "ViViT-B/16x2"): 0.55,
    ("train", MODEL_2, "ViViT-B/16x2"): 0.55,
    ("train", MODEL_3, "ViViT-B/16x2"): 0.50,
    ("train", MODEL_4, "ViViT-B/16x2"): 0.50,
    ("train", MODEL_1, "ViViT-L/16x2"): 0.50,
    ("train", MODEL_2, "ViViT-L/16x2"): 0.50,
}
CLIP_GOAL_MS, PEER_GOAL = 3.0, 1.6


class Row(NamedTuple):
    kind: str  # 'train' or 'forward'
    model: str
    batch: int
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    name: str = "ViViT-B/16x2"

    @property
    def label(self) -> str:
        options = {"attention_backend": "auto"} | self.options
        words = [str(options.pop("attention_backend"))]
        words += [f"{field.removesuffix('_dtype')}={value}" for field, value in options.items()]
        return f"{self.kind:8}{self.name:13} {self.model:16} batch {self.batch:<3} {', '.join(words)}"


def plan() -> list[Row]:
    """Returns the rows, the most important first."""
    large = "ViViT-L/16x2"
    return [
        Row("train", MODEL_1, 8, RESIDUAL),
        Row("train", MODEL_2, 16, RESIDUAL),
        Row("train", MODEL_3, 8, RESIDUAL),
        Row("train", MODEL_4, 8, RESIDUAL),
        Row("train", MODEL_1, 8),
        Row("forward", MODEL_1, 1),
        Row("forward", MODEL_2, 1),
        Row("forward", MODEL_3, 1),
        Row("forward", MODEL_4, 1),
        Row("forward", MODEL_1, 16),
        Row("train", MODEL_1, 8, RESIDUAL, large),
        Row("train", MODEL_2, 16, RESIDUAL, large),
        # Backends by name, and larger batches.
        Row("train", MODEL_1, 4, XLA),
        Row("train", MODEL_2, 16, RESIDUAL | XLA),
        Row("train", MODEL_3, 8, RESIDUAL | CUDNN),
        Row("train", MODEL_4, 8, RESIDUAL | CUDNN),
        Row("train", MODEL_1, 16, RESIDUAL),
        Row("train", MODEL_2, 32, RESIDUAL),
        Row("train", MODEL_3, 16, RESIDUAL),
        Row("train", MODEL_4, 16, RESIDUAL),
        Row("train", AVERAGE, 16, RESIDUAL),
        Row("forward", MODEL_1, 1, XLA),
        Row("forward", MODEL_1, 1, RESIDUAL),
        Row("forward", AVERAGE, 1),
        Row("forward", MODEL_2, 16),
        # Scan and remat: what they cost, at the sizes that need them.
        Row("train", MODEL_1, 8, RESIDUAL | SCAN | {"remat": "full"}, large),
        Row("train", MODEL_2, 16, RESIDUAL | SCAN | {"remat": "dots"}, large),
        Row("train", MODEL_1, 8, RESIDUAL | SCAN),
        Row("train", MODEL_1, 8, RESIDUAL | SCAN | {"remat": "dots"}),
        Row("train", MODEL_1, 8, RESIDUAL | SCAN | {"remat": "full"}),
        Row("train", MODEL_2, 16),
        Row("train", MODEL_3, 8, RESIDUAL | XLA),
        Row("train", MODEL_4, 8, RESIDUAL | XLA),
        Row("forward", MODEL_3, 16),
        Row("forward", MODEL_4, 16),
        Row("forward", MODEL_1, 1, {}, large),
        Row("forward", MODEL_2, 1, {}, large),
        Row("train", MODEL_1, 8, RESIDUAL | SCAN | {"remat": "dots"}, large),
        Row("train", MODEL_1, 32, RESIDUAL),
        Row("train", MODEL_2, 16, RESIDUAL | SCAN | {"remat": "full"}, large),
        Row("train", MODEL_3, 8),
        Row("train", MODEL_4, 8),
        Row("forward", AVERAGE, 16),
        Row("forward", MODEL_1, 16, {}, large),
        Row("forward", MODEL_1, 1, XLA | {"dtype": "float32"}),
    ]


def peer_plan() -> list[tuple[Row, bool]]:
    """Returns Hugging Face's rows and whether they are compiled: the rows of `plan` with the same model and batch."""
    rows = [Row("train", MODEL_1, 8), Row("forward", MODEL_1, 1), Row("forward", MODEL_1, 16)]
    return [(row, False) for row in rows] + [(row, True) for row in rows[1:] + rows[:1]]


def describe(values: dict[str, Any]) -> str:
    if "error" in values:
        return values["error"]
    words = [f"{values['ms']:9,.2f} ms {values['clips_per_second']:8,.1f} clips/s"]
    words += [f"{100 * values['mfu']:5.1f} % MFU"] if "mfu" in values else []
    words += [f"{values['gib']:6.1f} GiB"] if "gib" in values else []
    return " ".join(words)


def goals(results: dict[str, Any]) -> list[str]:
    """Returns a line for each goal: the best figure of the rows that it is about, and whether it is reached."""
    rows = [row for row in results["rows"] if "ms" in row]
    lines = []

    def check(what: str, figure: float | None, goal: float, unit: str, reached: bool) -> None:
        state = "not measured" if figure is None else f"{figure:.3g}{unit}, {'reached' if reached else 'missed'}"
        lines.append(f"{what:44} goal {goal:g}{unit}: {state}")

    for (kind, model, name), goal in MFU_GOALS.items():
        found = [row["mfu"] for row in rows if (row["kind"], row["model"], row["name"]) == (kind, model, name)]
        best = 100 * max(found) if found else None
        check(f"MFU, {kind} {name} {model}", best, 100 * goal, " %", bool(found) and max(found) >= goal)
    ours = [row for row in rows if row["name"].startswith("ViViT-B")]
    for model in subjects.MODELS:
        found = [r["ms"] for r in ours if (r["kind"], r["model"], r["batch"]) == ("forward", model, 1)]
        best = min(found, default=None)
        check(
            f"one clip's forward pass, ViViT-B {model}", best, CLIP_GOAL_MS, " ms", bool(found) and best < CLIP_GOAL_MS
        )
    for peer in results["peers"]:
        if "ms" not in peer:
            continue
        found = [r["ms"] for r in ours if (r["kind"], r["model"], r["batch"]) == (peer["kind"], MODEL_1, peer["batch"])]
        ratio = peer["ms"] / min(found) if found else None
        what = f"{peer['kind']} batch {peer['batch']}, times Hugging Face {'compiled' if peer['compiled'] else 'eager'}"
        check(what, ratio, PEER_GOAL, "", bool(ratio) and ratio >= PEER_GOAL)
    return lines


def print_peers(results: dict[str, Any]) -> None:
    for row in results["peers"]:
        print(f"Hugging Face {row.get('label', ''):77} {describe(row)}", flush=True)


def summary(results: dict[str, Any]) -> None:
    """Prints the table of all rows and the goals."""
    results["goals"] = goals(results)
    rates = results["rates"]
    print("\n" + ", ".join(results["machine"].values()) + f", product {rates['product_flops'] / 1e12:,.4g} TFLOP/s")
    order = {model: number for number, model in enumerate(subjects.MODELS)}
    for row in sorted(results["rows"], key=lambda r: (r["kind"], r["name"], order[r["model"]], r["batch"])):
        known = {field: row[field] for field in Row._fields}
        print(f"{Row(**known).label:90} {describe(row)}")
    print_peers(results)
    for verdict in sorted({kernel["verdict"] for kernel in results.get("kernels", [])}):
        found = [kernel for kernel in results["kernels"] if kernel["verdict"] == verdict]
        print(f"float64 {verdict}: " + ", ".join(f"{kernel['backend']} {kernel['tokens']}" for kernel in found))
    for skipped in results["skipped"]:
        print(f"left out: {skipped}")
    print("\n".join(results["goals"]))
