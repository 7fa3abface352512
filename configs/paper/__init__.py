"""Configs of the paper's tables and figures, one file each, with their rows."""
