"""Configs of the paper's tables and figures; each file has a row for each of theirs (`sweep`)."""
