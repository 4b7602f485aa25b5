"""Optimisers. A factory returns an `optax.GradientTransformation`. It receives those of these arguments that it has:
`learning_rate` (a number or a schedule of the step), `weight_decay`, and `decayed`, the weight decay mask (None: all).
"""

from kd_jax import registry

registry.bind("optimizers", globals())
