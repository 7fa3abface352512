"""Packages of vivit_jax; the metadata is in pyproject.toml. The repository's `configs/` is installed with them."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vivit_jax", "vivit_jax.*"]), "vivit_jax.configs", "vivit_jax.configs.paper"],
    package_dir={"vivit_jax.configs": "configs", "vivit_jax.configs.paper": "configs/paper"},
    include_package_data=False,
    package_data={
        "vivit_jax": ["py.typed"],
        "vivit_jax.compile": ["slices.toml"],
        "vivit_jax.config": ["*.toml"],
        "vivit_jax.convert": ["*.json", "*.toml"],
        "vivit_jax.convert.containers": ["*.toml"],
        "vivit_jax.convert.tables": ["*.toml"],
        "vivit_jax.cost": ["paper.toml"],
        "vivit_jax.data": ["catalog.toml"],
        "vivit_jax.data.annotations": ["words.toml"],
        "vivit_jax.export": ["templates/*.j2"],
        "vivit_jax.predict": ["classes/*.txt"],
        "vivit_jax.report": ["*.mplstyle", "templates/*.j2"],
        "vivit_jax.train": ["*.toml"],
        "vivit_jax.serve": ["page/*"],
    },
)
