"""Ahead-of-time compilation of a config for a TPU slice, on a machine without a TPU: memory, collectives, operations.

    python -m vivit_jax.compile --config=configs/k400_vivit_l.py --slice=v3-32

`benchmarks/tpu_table.py` writes the tables of docs/tpu.md.
"""
