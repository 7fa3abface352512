"""Config files; `--config=NAME` finds them by name once the package is installed."""
