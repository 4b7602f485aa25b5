"""kd_jax: knowledge distillation for recommender systems in JAX."""

__version__ = "0.1.0"
