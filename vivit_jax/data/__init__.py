"""Data sets: annotations -> records of JPEG chunks -> index -> batches of NumPy arrays.

Imports nothing: `annotations`, `catalog`, `video` and `records.split` need no TensorFlow, and stay light.
"""
