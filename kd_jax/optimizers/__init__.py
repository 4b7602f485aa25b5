"""Optimisers. A factory returns an `optax.GradientTransformation`. If it has these
arguments, kd_jax supplies them: `learning_rate` (a number or a schedule of the step), `weight_decay`, and `decayed`,
the mask of parameters with weight decay (None: all).
"""

from kd_jax import registry

registry.bind("optimizers", globals())
