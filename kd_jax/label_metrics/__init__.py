"""Metrics of labelled data (tags and clicks), from true labels and scores. A factory returns a `base.LabelMetric`.

NumPy, float64. A label is predicted if its probability sigmoid(score) is above 1/2.
"""

from kd_jax import registry

registry.bind("label_metrics", globals())
