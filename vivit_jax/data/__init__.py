"""Videos in, batches out: annotations -> records of JPEG chunks -> index -> batches of NumPy arrays.

Nothing is imported here: `decode`, `annotations`, `catalog` and `index` need no TensorFlow, and stay light.
"""
