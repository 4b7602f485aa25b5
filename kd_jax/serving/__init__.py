"""Exports a trained model, and answers requests from an export: as a library, over HTTP, or for all users at once.

  from kd_jax import serving
  recommender = serving.load("exported/student")
  recommender.recommend("196", k=5).items

Loading needs neither flax nor the code of the model; an export with the format npz needs NumPy only.
"""

from kd_jax.serving.loading import load as load
from kd_jax.serving.requests import Answer as Answer
from kd_jax.serving.requests import Request as Request
