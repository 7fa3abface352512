"""Ahead-of-time compilation of a config for a TPU slice, on a machine without a TPU: memory, collectives, operations.

    python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v3-32

Modules: `slices` (names and devices of slices), `program` (the steps of `vivit_jax.train`, lowered with abstract
arguments), `ahead` (compiling one, and the largest batch that fits), `collectives` (what a program sends between
devices), `report` (what the command prints). `benchmarks/tpu_table.py` writes the tables of docs/tpu.md.
"""
