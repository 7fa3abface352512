"""The paper's figures that need no data, beside ours: Tables 2 and 5, Figures 7 (b), 8 (b) and 9.

Published numbers are the paper's (arXiv:2103.15691) and are printed beside ours, never in their place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from vivit_jax.cost.counts import forward_count, parameters_by_part
from vivit_jax.cost.render import Table
from vivit_jax.models import ViViTConfig, count_parameters
from vivit_jax.models.config import BACKBONES
from vivit_jax.models.flops import matrix_products

# name -> fields of the five models of Table 2.
MODELS: dict[str, dict[str, str | int]] = {
    "Model 1, spatio-temporal": {"attention": "spatiotemporal"},
    "Model 2, factorised encoder": {"attention": "factorised_encoder"},
    "Model 3, factorised self-attention": {"attention": "factorised_self_attention"},
    "Model 4, factorised dot-product": {"attention": "factorised_dot_product"},
    "Model 2, average pooling": {"attention": "factorised_encoder", "temporal_layers": 0},
}
# Published (GFLOPs, million parameters), ViViT-B/16x2, 32 x 224 x 224.
TABLE2 = dict(zip(MODELS, [(455.2, 88.9), (284.4, 100.7), (372.3, 117.3), (277.1, 88.9), (283.9, 86.7)], strict=True))
# Published GFLOPs of ViViT-L/16x2, Model 1, by crop.
TABLE5 = {224: 1446.0, 288: 2919.0, 320: 3992.0}
TUBELET_LENGTHS = (2, 4, 8, 16)  # Figure 8
FRAMES = {32: 2, 64: 4, 128: 8}  # Figure 9: frames in -> tubelet length

HEADER = ("model", "quantity", "published", "ours", "difference %", "last digit", "matrix products", "remark")
_COUNTED = (
    "GFLOPs are 10^9 multiply-adds of one clip's forward pass, as the paper counts: half of the flops that XLA's cost "
    "analysis finds in our unoptimised float32 program. 'Matrix products' are the part of them that the closed formula "
    "gives (vivit_jax.cost.matrix_products); the rest is element by element: softmax, LayerNorm, GELU, biases, "
    "residuals. (Some versions of jaxlib add up in float32: five digits hold.)"
)
_DECIMALS = {"GFLOPs": 2, "M parameters": 3, "tokens": 0}
_DRAWN = "The paper draws this; a published number stands where Table 2 or 5 gives one for the same model."


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity, ours beside the published one.

    Attributes:
      model: whose.
      quantity: with its unit.
      ours: measured here, in that unit.
      digits: decimals of the published number.
      published: the paper's, None where it prints none.
      products: the matrix products' part of ours, where it is a count of multiply-adds.
      remark: why they differ, or what to know.
    """

    model: str
    quantity: str
    ours: float
    digits: int
    published: float | None = None
    products: float | None = None
    remark: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether ours, rounded as the published number is, is that number; None where there is none."""
        return None if self.published is None else round(self.ours, self.digits) == self.published

    @property
    def difference(self) -> float | None:
        """(ours - published) / published; None where there is no published number."""
        return None if self.published is None else (self.ours - self.published) / self.published

    def cells(self) -> tuple[str, ...]:
        """The row of a table with the columns `HEADER`; ours with decimals that show what rounding hides."""
        many = _DECIMALS[self.quantity]
        return (
            self.model,
            self.quantity,
            "" if self.published is None else f"{self.published:.{self.digits}f}",
            f"{self.ours:.{many}f}",
            "" if self.difference is None else f"{100 * self.difference:+.3f}",
            {None: "", True: "same", False: "differs"}[self.agrees],
            "" if self.products is None else f"{self.products:.{many}f}",
            self.remark,
        )


Say = Callable[[str], None]


def table2_rows() -> list[Row]:
    """Table 2: multiply-adds and parameters of the five models, ViViT-B/16x2 on 32 frames of 224 x 224."""
    rows = []
    for name, fields in MODELS.items():
        config, (gflops, millions) = ViViTConfig.from_name("ViViT-B/16x2", **fields), TABLE2[name]
        rows += [_gflops(name, config, gflops, 1), _millions(name, config, millions)]
    return rows


def table5_rows() -> list[Row]:
    """Table 5: multiply-adds of ViViT-L/16x2, Model 1, at three resolutions."""
    return [
        _gflops(f"Model 1, L/16x2, crop {crop}", ViViTConfig.from_name("ViViT-L/16x2", image_size=crop), published, 0)
        for crop, published in TABLE5.items()
    ]


def figure7_rows() -> list[Row]:
    """Figure 7 (b): multiply-adds and parameters by backbone, Model 1, tubelets 16x2, 32 frames of 224 x 224."""
    known = {"B": TABLE2["Model 1, spatio-temporal"], "L": (TABLE5[224], None)}
    rows = []
    for backbone in BACKBONES:
        config = ViViTConfig.from_name(f"ViViT-{backbone}/16x2")
        gflops, millions = known.get(backbone, (None, None))
        rows += [
            _gflops(config.name, config, gflops, 0 if backbone == "L" else 1),
            _millions(config.name, config, millions),
        ]
    return rows


def figure8_rows() -> list[Row]:
    """Figure 8 (b): multiply-adds by temporal tokens (tubelet length) and model, ViViT-B, 32 frames of 224 x 224."""
    rows = []
    for name, fields in MODELS.items():
        for t in TUBELET_LENGTHS:
            config = ViViTConfig.from_name(f"ViViT-B/16x{t}", **fields)
            label = f"{name}, B/16x{t}, n_t = {config.grid[0]}"
            rows.append(_gflops(label, config, TABLE2[name][0] if t == 2 else None, 1))
    return rows


def figure9_rows() -> list[Row]:
    """Figure 9: more frames into as many tokens, by longer tubelets; Model 1, ViViT-B, 224 x 224."""
    rows = []
    for frames, t in FRAMES.items():
        config = ViViTConfig.from_name(f"ViViT-B/16x{t}", num_frames=frames)
        n_t, n_h, n_w = config.grid
        label = f"{frames} frames, B/16x{t}"
        shape = f"{n_t} x {n_h} x {n_w} tokens (and the class token)"
        rows.append(Row(label, "tokens", n_t * n_h * n_w, 0, remark=shape))
        row = _gflops(label, config, TABLE2["Model 1, spatio-temporal"][0] if frames == 32 else None, 1)
        tokenizer = matrix_products(config)["tokenizer"] / 1e9
        remark = f"tokeniser {tokenizer:.2f} G, all else {row.ours - tokenizer:.2f} G"
        rows.append(dataclasses.replace(row, remark=remark))
    return rows


def explain_gflops(config: ViViTConfig, row: Row) -> str:
    """Whether the program without its class token gives a published count that ours does not, tried out."""
    if config.classifier == "gap":
        return f"ours are {row.products:.2f} G of matrix products and {row.ours - row.products:.2f} G of all else."
    without = dataclasses.replace(config, classifier="gap")
    count = forward_count(without) / 1e9
    products = sum(matrix_products(without).values()) / 1e9
    n_t, n_h, n_w = config.grid
    fits = round(count, row.digits) == row.published
    return (
        f"{n_t} x {n_h} x {n_w} tokens and the class token are {row.ours:.2f} G; the class token's own matrix products "
        f"are {row.products - products:.2f} G. Without it (classifier='gap') the same program counts {count:.2f} G "
        f"(matrix products {products:.2f}): "
        + ("the published number to its last digit." if fits else "no match either.")
    )


def explain_table5(rows: Sequence[Row]) -> str:
    """Whether one program and one way of rounding give all of Table 5; every one of the four tried out."""
    token = [row.ours for row in rows]
    pooled = [
        forward_count(ViViTConfig.from_name("ViViT-L/16x2", image_size=crop, classifier="gap")) / 1e9 for crop in TABLE5
    ]
    tried = {
        "class token, rounded": [round(count) for count in token],
        "class token, cut off": [int(count) for count in token],
        "no class token, rounded": [round(count) for count in pooled],
        "no class token, cut off": [int(count) for count in pooled],
    }
    published = [int(row.published) for row in rows]
    fits = [how for how, counts in tried.items() if counts == published]
    verdict = f"All three are those of: {fits[0]}." if fits else "No one of these is all three of the published row."
    shown = "; ".join(f"{how}: {', '.join(map(str, counts))}" for how, counts in tried.items())
    return f"One program at three crops: {shown}. {verdict}"


def explain_parameters(config: ViViTConfig, row: Row) -> str:
    """What would give a published number of parameters that ours is not, tried out.

    Of Model 2: other temporal encoders, and what the published GFLOPs say of them. Of the others: the digit cut off, or
    the LayerNorms left out.
    """
    if config.attention == "factorised_encoder" and config.temporal_layers:
        full, gflops = config.temporal_layers, TABLE2["Model 2, factorised encoder"][0]
        of = [dataclasses.replace(config, temporal_layers=layers) for layers in range(full + 1)]
        millions = [count_parameters(other) / 1e6 for other in of]
        nearest = min(range(full + 1), key=lambda layers: abs(millions[layers] - row.published))
        return (
            f"not to be had from the released configuration, whose temporal encoder has {full} whole layers of "
            f"{millions[full] - millions[full - 1]:.2f} M each. The nearest would be {nearest} layers, "
            f"{millions[nearest]:.1f} M and {forward_count(of[nearest]) / 1e9:.1f} GFLOPs; but the published {gflops} "
            f"GFLOPs are those of {full} ({forward_count(of[full]) / 1e9:.2f} G)."
        )
    norms = sum(count for part, count in parameters_by_part(config).items() if "norm" in part)
    less = row.ours - norms / 1e6
    tries = {
        f"ours cut off after {row.digits} decimal": math.floor(row.ours * 10**row.digits) / 10**row.digits,
        f"ours without the {norms:,} parameters of LayerNorms ({less:.3f} M), rounded": round(less, row.digits),
    }
    fits = [how for how, value in tries.items() if value == row.published]
    return f"the published number equals {', and '.join(fits) or 'neither ours cut off nor ours without LayerNorms'}."


# name -> (title, rows, note)
TABLES: dict[str, tuple[str, Callable[[], list[Row]], str | Callable[[Sequence[Row]], str]]] = {
    "table2": ("Table 2: the models, ViViT-B/16x2, 32 frames of 224 x 224", table2_rows, _COUNTED),
    "table5": ("Table 5: resolution, ViViT-L/16x2, Model 1, 32 frames", table5_rows, explain_table5),
    "figure7": ("Figure 7 (b): backbones, Model 1, tubelets 16x2", figure7_rows, _DRAWN),
    "figure8": ("Figure 8 (b): temporal tokens, ViViT-B, 32 frames of 224 x 224", figure8_rows, _DRAWN),
    "figure9": ("Figure 9: frames at a constant number of tokens, ViViT-B, Model 1", figure9_rows, _DRAWN),
}


def tables(names: Sequence[str] = tuple(TABLES), say: Say = lambda _: None) -> Iterable[Table]:
    """The tables asked for, one after the other as they are counted.

    Args:
      names: keys of `TABLES`.
      say: called with a line of progress before each.

    Raises:
      ValueError: a name that is not known.
    """
    if unknown := [name for name in names if name not in TABLES]:
        raise ValueError(f"only={','.join(unknown)} is not known; choose among {', '.join(TABLES)}")
    for name in names:
        title, rows, note = TABLES[name]
        say(f"counting {title}")
        found = rows()
        notes = (note,) if isinstance(note, str) else (note(found),)
        if name == names[0] and _COUNTED not in notes:
            notes += (_COUNTED,)
        yield Table(name, title, HEADER, tuple(row.cells() for row in found), notes)


def _gflops(name: str, config: ViViTConfig, published: float | None, digits: int) -> Row:
    products = sum(matrix_products(config).values()) / 1e9
    row = Row(name, "GFLOPs", forward_count(config) / 1e9, digits, published, products)
    if row.agrees is False:
        return dataclasses.replace(row, remark=explain_gflops(config, row))
    return row


def _millions(name: str, config: ViViTConfig, published: float | None) -> Row:
    row = Row(name, "M parameters", count_parameters(config) / 1e6, 1, published)
    if row.agrees is False:
        return dataclasses.replace(row, remark=explain_parameters(config, row))
    return row
