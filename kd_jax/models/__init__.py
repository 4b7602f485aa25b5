"""Models: one file each, a Flax module and a factory of the file's name.

A module is called as `module(batch, tables=None) -> Outputs`. `batch["users"]` [B] is the context and
`batch["items"]` [B, C] the candidates; without "items" the candidates are all items. `tables()` returns
what does not depend on the batch, so that scoring many batches computes it once. `inner_product` says
whether scores are <query, items> of its outputs. A module that needs
more of the data than its size (a graph, histories) has `constants(dataset) -> dict of arrays`, which the
frame hands over as the collection "constants". A baseline in closed form has `fit(dataset) -> params`.
A module with `reads_sequences` = True and a `length` is trained on batches of `kd_jax.sequences`: it predicts
every example from what comes before it in its user's history. Without `place` in the batch, as in
evaluation and distillation, it speaks of a user's whole history.
"""
