"""Readers of annotation files, one module a format; `annotations.read` chooses."""
