"""Config files; `--config=NAME` finds them by name from any folder."""
