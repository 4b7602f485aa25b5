"""Models, one per file: a Flax module and a factory with the file's name.

A module is called as `module(batch, tables=None) -> Outputs`. `batch["users"]` [B] are the contexts and
`batch["items"]` [B, C] the candidates; without "items", all items are candidates. `tables()` returns everything that
does not depend on the batch, so that it is computed once when many batches are scored. `inner_product` is True if
scores are the inner products <query, items> of the outputs.

A module that needs more of the data than its size, e.g. a graph or histories, has
`constants(dataset) -> dict of arrays`; it reads these arrays from the collection "constants". A baseline in closed form
has `fit(dataset) -> params`.

A module with `reads_sequences` = True and a `length` is trained on batches of `kd_jax.training.sequence_batches`: it
predicts every example from the items before it in the user's history. If a batch has no `place`, as in evaluation and
distillation, the outputs are for the user's full history.
"""

from kd_jax import registry

registry.bind("models", globals())
