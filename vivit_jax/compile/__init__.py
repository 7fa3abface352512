"""Compiling a config ahead of time for a TPU slice, on a machine that has none: does it fit, and what does it send?

    python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v3-32

Rooms: `slices` (what there is to rent), `program` (the very steps that `vivit_jax.train` runs, with abstract
arguments), `ahead` (compiling one, and what the compiler says), `collectives` (what it sends), `search` (the largest
batch that fits), `table` (docs/tpu.md).
"""
