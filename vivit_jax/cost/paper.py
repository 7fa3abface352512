"""The paper's figures that need no data, beside ours: Tables 2 and 5, Figures 7 (b), 8 (b) and 9.

Published numbers, in paper.toml, are from arXiv:2103.15691. They are printed beside ours, never instead.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vivit_jax.cost.counts import forward_count
from vivit_jax.models import ViViTConfig, count_parameters
from vivit_jax.models.config import BACKBONES
from vivit_jax.models.flops import matrix_products
from vivit_jax.utils.tables import Table

_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
# name -> fields of the five models of Table 2, and its published (GFLOPs, million parameters)
MODELS: dict[str, dict[str, str | int]] = {name: model["fields"] for name, model in _DATA["models"].items()}
TABLE2 = {name: tuple(model["published"]) for name, model in _DATA["models"].items()}
TABLE5 = {int(crop): gflops for crop, gflops in _DATA["resolutions"].items()}  # published GFLOPs by crop
TUBELET_LENGTHS = (2, 4, 8, 16)  # Figure 8
FRAMES = {32: 2, 64: 4, 128: 8}  # Figure 9: frames in -> tubelet length

HEADER = ("model", "quantity", "published", "ours", "difference %", "last digit", "matrix products", "remark")
REMARKS: dict[str, str] = _DATA["remarks"]
_DECIMALS = {"GFLOPs": 2, "M parameters": 3, "tokens": 0}


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity, ours beside the published one."""

    model: str
    quantity: str  # a key of `_DECIMALS`
    ours: float
    digits: int  # decimals of the published number
    published: float | None = None  # None where the paper prints none
    products: float | None = None  # share of the matrix products in a count of multiply-adds
    remark: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether ours rounds to the published number; None where there is none."""
        return None if self.published is None else round(self.ours, self.digits) == self.published

    def cells(self) -> tuple[str, ...]:
        """Returns the cells of the columns `HEADER`."""
        decimals = _DECIMALS[self.quantity]
        ours, products = f"{self.ours:.{decimals}f}", "" if self.products is None else f"{self.products:.{decimals}f}"
        published = difference = last_digit = ""
        if self.published is not None:
            published = f"{self.published:.{self.digits}f}"
            difference = f"{100 * (self.ours - self.published) / self.published:+.3f}"
            last_digit = "same" if self.agrees else "differs"
        return (self.model, self.quantity, published, ours, difference, last_digit, products, self.remark)


def table2_rows() -> Iterable[Row]:
    for name, fields in MODELS.items():
        config, (gflops, millions) = ViViTConfig.from_name("ViViT-B/16x2", **fields), TABLE2[name]
        yield _gflops(name, config, gflops, 1)
        yield _millions(name, config, millions)


def table5_rows() -> Iterable[Row]:
    for crop, published in TABLE5.items():
        config = ViViTConfig.from_name("ViViT-L/16x2", image_size=crop)
        yield _gflops(f"Model 1, L/16x2, crop {crop}", config, published, 0)


def figure7_rows() -> Iterable[Row]:
    published = {"B": TABLE2["Model 1, spatio-temporal"], "L": (TABLE5[224], None)}
    for backbone in BACKBONES:
        config = ViViTConfig.from_name(f"ViViT-{backbone}/16x2")
        gflops, millions = published.get(backbone, (None, None))
        yield _gflops(config.name, config, gflops, 0 if backbone == "L" else 1)
        yield _millions(config.name, config, millions)


def figure8_rows() -> Iterable[Row]:
    for name, fields in MODELS.items():
        for t in TUBELET_LENGTHS:
            config = ViViTConfig.from_name(f"ViViT-B/16x{t}", **fields)
            label = f"{name}, B/16x{t}, n_t = {config.grid[0]}"
            yield _gflops(label, config, TABLE2[name][0] if t == 2 else None, 1)


def figure9_rows() -> Iterable[Row]:
    for frames, t in FRAMES.items():
        config = ViViTConfig.from_name(f"ViViT-B/16x{t}", num_frames=frames)
        label, (n_t, n_h, n_w) = f"{frames} frames, B/16x{t}", config.grid
        shape = f"{n_t} x {n_h} x {n_w} tokens (and the class token)"
        yield Row(label, "tokens", n_t * n_h * n_w, 0, remark=shape)
        row = _gflops(label, config, TABLE2["Model 1, spatio-temporal"][0] if frames == 32 else None, 1)
        tokenizer = matrix_products(config)["tokenizer"] / 1e9
        remark = f"tokeniser {tokenizer:.2f} G, all else {row.ours - tokenizer:.2f} G"
        yield dataclasses.replace(row, remark=remark)


_ROWS = {rows.__name__: rows for rows in (table2_rows, table5_rows, figure7_rows, figure8_rows, figure9_rows)}
# name -> (title, rows, note)
TABLES: dict[str, tuple[str, Callable[[], Iterable[Row]], str]] = {
    name: (table["title"], _ROWS[f"{name}_rows"], table["note"]) for name, table in _DATA["tables"].items()
}


def tables(names: Sequence[str] = tuple(TABLES), log: Callable[[str], None] = lambda _: None) -> Iterable[Table]:
    """Yields tables, keys of `TABLES`, as they are counted; `log` receives a line of progress before each."""
    if unknown := [name for name in names if name not in TABLES]:
        raise ValueError(f"only={','.join(unknown)} is unknown; choose among {', '.join(TABLES)}")
    for name in names:
        title, rows, note = TABLES[name]
        log(f"counting {title}")
        notes = [note, REMARKS["counted"] if name == names[0] else ""]
        yield Table(title, HEADER, tuple(row.cells() for row in rows()), tuple(filter(None, notes)))


def _gflops(name: str, config: ViViTConfig, published: float | None, digits: int) -> Row:
    products = sum(matrix_products(config).values()) / 1e9
    row = Row(name, "GFLOPs", forward_count(config) / 1e9, digits, published, products)
    if row.agrees is not False:
        return row
    count = forward_count(dataclasses.replace(config, classifier="gap")) / 1e9
    verdict = "the published number" if round(count, digits) == published else "no match either"
    return dataclasses.replace(row, remark=f"without the class token (classifier='gap') {count:.2f} G: {verdict}")


def _millions(name: str, config: ViViTConfig, published: float | None) -> Row:
    row = Row(name, "M parameters", count_parameters(config) / 1e6, 1, published)
    remark = REMARKS["depths" if config.attention == "factorised_encoder" else "truncated"]
    return row if row.agrees is not False else dataclasses.replace(row, remark=remark)
