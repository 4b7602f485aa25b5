"""Callbacks: functions that are called during training. A factory returns a new `base.Callback` for every run."""

from kd_jax import registry

registry.bind("callbacks", globals())
