"""Base losses: they depend on the data only, not on a teacher. A factory returns a `base.Objective`."""

from kd_jax import registry

registry.bind("objectives", globals())
