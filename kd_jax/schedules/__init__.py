"""Learning rate schedules. A factory returns an `optax.Schedule`, step -> rate. If it has these arguments,
kd_jax supplies them: `learning_rate`, `steps_per_epoch`, and `epochs`, the maximum number of epochs.
"""

from kd_jax import registry

registry.bind("schedules", globals())
