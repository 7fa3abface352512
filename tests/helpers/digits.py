"""A small moving_digits: its videos and records."""

from vivit_jax.data import build, moving_digits


def build_digits(folder, train, validation, num_workers=None):
    """Generates so many videos and builds their records under `folder`, where `build.prepare` finds them."""
    sizes = {"train": train, "validation": validation}
    source = moving_digits.generate(f"{folder}/moving_digits", **sizes, num_workers=num_workers, progress=False)
    options = build.BuildOptions(num_workers=num_workers, progress=False)
    return build.build("moving_digits", source / "videos", source / "annotations", folder, options)
