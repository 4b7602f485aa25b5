"""Distillation methods, one per file. Each file has a factory with the file's name that returns a `base.KD`.

Arguments are the hyperparameters of the paper under descriptive names, with the paper's values as defaults.
"""

from kd_jax import registry

registry.bind("losses", globals())
