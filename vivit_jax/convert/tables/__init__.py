"""The names that others give to the leaves of our parameter tree, as data: one table a format."""

from vivit_jax.convert.tables.rows import Format
from vivit_jax.convert.tables.scenic import scenic

# format -> what there is to know about it; the order is that of looking.
FORMATS: dict[str, Format] = {
    "scenic": Format(
        rows=scenic,
        describe=None,
        signature=r"(^|/)(Spatial|Temporal)?Transformer/encoderblock_\d+/",
        prefixes=("optimizer/target/", "params/", ""),
    ),
}
