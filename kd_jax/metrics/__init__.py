"""Ranking metrics, from the ranks of held-out items. A factory returns a `base.Metric`.

Conventions are those of trec_eval. A user has n held-out items at ranks r (from 0) among all candidates; k is the
cut-off. On the command line, `ndcg@10` is `ndcg(k=10)`.
"""

from kd_jax import registry

registry.bind("metrics", globals())
