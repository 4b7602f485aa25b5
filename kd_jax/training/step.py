"""Pure training functions: the initial state, one step, one epoch.

The same code trains teachers, plain students and distilled students, see `graph`. This module does not use devices or
files.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.base import Array, Batch, InputError, Outputs
from kd_jax.objectives import _embedding_l2
from kd_jax.ranking import rank
from kd_jax.training import graph


def init(rng: Array, run: graph.Run, given: graph.Given, batch: Batch) -> graph.TrainState:
  """The initial state of the learners and of the methods' adapters, for batches shaped like `batch` [B, ...]."""
  networks = {}
  for i, (name, module) in enumerate(run.networks):
    if name in run.learners:
      constants = {"constants": given.constants.get(name, {})}
      networks[name] = _init(module, jax.random.fold_in(rng, i), constants, batch)
  params = {"networks": networks, "adapters": {}}
  for j, edge in enumerate(graph.edges(run)):
    if edge.kd.adapter is not None:
      student, teacher, target = edge_outputs(run, given, params, edge, batch)
      rngs = {n: jax.random.fold_in(rng, 1000 + j) for n in ("params", "noise")}
      params["adapters"][edge.key] = edge.kd.adapter.init(rngs, student, teacher, target)["params"]
  return graph.TrainState(jnp.zeros((), jnp.int32), params, run.optimizer.init(params))


def _init(module, rng, constants, batch):
  """Initial parameters of a module; its other collections are given."""
  return module.apply(constants, batch, rngs={"params": rng}, mutable=["params"])[1].get("params", {})


_CONTEXT = ("users", "items", "position", "place")  # fields of a batch that networks read


def forward(module, variables: dict, batches: dict[str, Batch], rng: Array | None = None) -> dict[str, Outputs]:
  """{key: Outputs} of one network for batches of the same users. The network's tables are computed once.

  With `rng`, dropout is on. Only the base batch has positions in histories; distillation uses the output for the full
  history. The network runs only once if base batch and targets have the same rows (labelled data).
  """
  rngs = {} if rng is None else {"dropout": rng}
  tables = module.apply(variables, method="tables", rngs=rngs)

  def apply(batch):
    return module.apply(variables, {k: batch[k] for k in _CONTEXT if k in batch}, tables, rngs=rngs)

  base = batches["base"]["users"] if "base" in batches and "items" not in batches["base"] else None
  outs = {key: apply(b) for key, b in batches.items() if key == "base" or ("items" not in b and b["users"] is not base)}
  outs |= {key: outs["base"].of(b.get("items")) for key, b in batches.items() if b["users"] is base}
  listed = {key: b for key, b in batches.items() if key not in outs}
  if listed:  # Concatenates all candidates for one call, then splits the outputs.
    blocks = [b["items"] for b in listed.values()]
    out = apply(next(iter(listed.values())) | {"items": jnp.concatenate(blocks, axis=1)})
    cuts = np.cumsum([x.shape[1] for x in blocks])[:-1]
    scores = jnp.split(out.scores, cuts, axis=1)
    items = [None] * len(scores) if out.items is None else jnp.split(out.items, cuts, axis=1)
    outs |= {k: Outputs(s, out.query, i) for k, s, i in zip(listed, scores, items, strict=True)}
  return outs


def entities(module, variables: dict, target: Batch) -> Outputs:
  """Representations [M + N, D] of users [M] and items [N], and [M + N, n, D] of their neighbours."""
  m = target["users"].shape[0]
  near = target.get("neighbours", jnp.zeros((m, 0), jnp.int32))  # [M + N, n]
  users = jnp.concatenate([target["users"], near[:m].reshape(-1)])
  out = module.apply(variables, {"users": users})  # its scores are unused, so XLA removes them
  if out.query is None or (out.items is None and target["items"].size):
    raise InputError(f"`kd`: the method needs representations, which {type(module).__name__} has not")
  own = out.query[:m] if out.items is None else jnp.concatenate([out.query[:m], out.items[target["items"]]])
  if "neighbours" not in target:
    return Outputs(None, own)
  return Outputs(None, own, jnp.concatenate([out.query[m:].reshape(m, near.shape[1], -1), out.items[near[m:]]]))


def _labelled(batch: Batch, labels) -> Batch:
  """Adds labels and rows of contexts to a batch of labelled data; the base loss and all methods use them."""
  users, weight = batch["users"], batch["weight"]
  return batch if labels is None else batch | {
      "labels": labels[users].astype(jnp.float32), "kd_users": users, "kd_users_weight": weight}


def _target(run, edge, given, batch, targets, epoch, axis_name=None) -> Batch:
  """The rows of a batch for one method, with their target fields."""
  if edge.kd.rows == "entities":
    items = batch.get("items", jnp.zeros(0, jnp.int32)).reshape(-1)  # none in labelled data
    weight = jnp.concatenate([batch["kd_users_weight"], batch.get("items_weight", items).reshape(-1)])
    is_user = jnp.arange(weight.shape[0]) < batch["kd_users"].shape[0]
    target = {"users": batch["kd_users"], "items": items, "weight": weight, "is_user": is_user, "epoch": epoch}
    if edge.kd.neighbours:
      near = given.neighbours[edge.kd.neighbours]
      target["neighbours"], target["neighbour_weights"] = (
          jnp.concatenate([u[batch["kd_users"]], i[items]]) for u, i in zip(near["users"], near["items"], strict=True))
    return target
  rows, weight = _sampled_items(run, edge, batch, targets, axis_name) if edge.kd.sampled_items and targets else (
      batch[f"kd_{edge.kd.rows}"], batch[f"kd_{edge.kd.rows}_weight"])
  fields = {k: v[rows] for k, v in targets.get(edge.key, {}).items()}
  if "labels" in batch:  # select the labels of the candidates
    fields["labels"] = batch["labels"]
    if "items" in fields:
      fields["labels"] = jnp.take_along_axis(batch["labels"], fields["items"], axis=1)
  return {"users": rows, "weight": weight * fields.pop("weight", 1.0), "epoch": epoch} | fields


def _sampled_items(run, edge, batch, targets, axis_name) -> tuple[Array, Array]:
  """The rows of a method with `sampled_items`: they include items that user-side methods sampled."""
  others = [targets[e.key] for e in graph.edges(run)
            if e.learner == edge.learner and e.kd.rows == "users" and "items" in targets.get(e.key, {})]
  return _merged_items(batch, others, next(iter(targets[edge.key].values())).shape[0], axis_name)


def _merged_items(batch: Batch, samples: Sequence[Batch], num_items: int,
                  axis_name: str | None) -> tuple[Array, Array]:
  """(items [R], weights [R]): a batch's positives and the items of `samples`, fields [U, ...], of its users.

  The weight of an item is the maximum over its interactions, and over the users for whom it was sampled, except users
  of weight 0. R is the smaller of the number of all items and the maximum number of items in a batch. Each device of
  the axis gets a part.
  """
  met = [(batch["kd_items"], batch["kd_items_weight"])]
  for sample in samples:
    listed = sample["items"][batch["kd_users"]]  # [M, C]
    weights = batch["kd_users_weight"]
    if "weight" in sample:
      weights = weights * (sample["weight"][batch["kd_users"]] > 0)
    met.append((listed, jnp.broadcast_to(weights[:, None], listed.shape)))
  weight = jnp.zeros(num_items)
  for which, weights in met:
    weight = weight.at[which].max(weights)
  devices, device = 1, 0
  if axis_name is not None:
    weight = jax.lax.pmax(weight, axis_name)
    devices, device = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
  share = -(-min(num_items, devices * sum(which.size for which, _ in met)) // devices)
  place = jnp.arange(share * devices)
  rows = place if len(place) >= num_items else jnp.nonzero(weight, size=len(place), fill_value=num_items)[0]
  rows = jax.lax.dynamic_slice_in_dim(rows, device * share, share)
  return jnp.minimum(rows, num_items - 1), weight.at[rows].get(mode="fill", fill_value=0)


def _outputs(run, given, params, batch, targets, epoch, rng=None, axis_name=None):
  """({learner: base Outputs}, {edge key: (student, teacher, target)}), one forward pass per network."""
  base = {k: v for k, v in batch.items() if k != "items"} if run.objective.all_items else batch
  asked = {name: {"base": base} for name in run.learners}
  for edge in graph.edges(run):
    target = _target(run, edge, given, batch, targets, epoch, axis_name)
    for name in (edge.learner, *edge.teachers):
      asked.setdefault(name, {})[edge.key] = target
  outs = {}
  rows = {edge.key: edge.kd.rows for edge in graph.edges(run)}
  for name, batches in asked.items():
    if name in dict(run.networks):
      module, own = dict(run.networks)[name], graph.variables(given, params, name)
      by_user = {k: b for k, b in batches.items() if rows.get(k, "users") == "users"}
      outs[name] = forward(module, own, by_user, rng if name in run.learners else None)
      outs[name] |= {k: entities(module, own, b) for k, b in batches.items() if rows.get(k) == "entities"}
      outs[name] |= {k: Outputs(rank.scorer(module, own, "items")(b["users"], b["items"]))
                     for k, b in batches.items() if rows.get(k) == "items"}
  heard = {e.key: (outs[e.learner][e.key], _teacher(run, e, outs, asked[e.learner][e.key]),
                   asked[e.learner][e.key]) for e in graph.edges(run)}
  return {name: outs[name]["base"] for name in run.learners}, heard


def _teacher(run, edge, outs, target) -> Outputs:
  """Outputs of the teachers of an edge, without gradients."""
  said = [outs[t][edge.key] if t in outs else Outputs(target.get("teacher")) for t in edge.teachers]
  teacher = Outputs(jnp.stack([x.scores for x in said])) if edge.kd.all_teachers else said[0]
  if "teacher" in target and not graph.teaches_live(run, edge):  # scored before the epoch, or read from a file
    scores = target["teacher"]
    teacher = teacher._replace(scores=jnp.moveaxis(scores, 1, 0) if edge.kd.all_teachers else scores)
  return jax.lax.stop_gradient(teacher)


def edge_outputs(run: graph.Run, given: graph.Given, params: dict, edge: graph.Edge,
                 batch: Batch) -> tuple[Outputs, Outputs, Batch]:
  """(student, teacher, target) of one edge at epoch 0, before any sampling."""
  alone = run._replace(kds=((edge.weight, edge.kd),))
  heard = _outputs(alone, given, params, _labelled(batch, given.labels), {}, jnp.zeros((), jnp.int32))[1]
  return next(heard[e.key] for e in graph.edges(alone) if (e.learner, e.teachers) == (edge.learner, edge.teachers))


def per_example_loss(params, given, batch, targets, rng, epoch=0, *, run, axis_name=None, whole=lambda tree: tree):
  """([B] base losses, {edge key: (losses, weights) of its rows}, {edge key: {name: scalars of its rows}})."""
  batch, dropout = _labelled(batch, given.labels), jax.random.fold_in(rng, 1_000_000)
  dropout = dropout if axis_name is None else jax.random.fold_in(dropout, jax.lax.axis_index(axis_name))
  base, heard = _outputs(run, given, params, batch, targets, epoch, dropout, axis_name)
  terms, scalars = {}, {}
  for j, edge in enumerate(graph.edges(run)):
    # Methods on representations have loops with data-dependent trip counts. These differ per device, so the loops must
    # contain no collectives.
    on_all = whole if edge.kd.rows == "entities" else lambda tree: tree
    student, teacher, target = on_all(heard[edge.key])
    if edge.kd.adapter is not None:
      own, rngs = on_all(params["adapters"][edge.key]), {"noise": jax.random.fold_in(rng, j)}
      student = on_all(edge.kd.adapter.apply({"params": own}, student, teacher, target, rngs=rngs))
    loss = on_all(_of_rows(edge.kd, edge.kd.loss, (student, teacher, target), target["weight"], axis_name))
    loss, scalars[edge.key] = loss if isinstance(loss, tuple) else (loss, {})
    terms[edge.key] = loss, target["weight"]
  objective, key = run.objective, jax.random.fold_in(rng, 2_000_000)
  if axis_name is not None and not objective.in_batch:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
  losses = [_of_rows(objective, lambda outputs, batch: objective.loss(outputs, batch, key), (base[name], batch),
                     batch["weight"], axis_name) for name in run.learners]
  for name in run.learners if run.embedding_l2 else ():
    own = dict(run.networks)[name].apply(graph.variables(given, params, name), method=_embedding_l2.embeddings)
    losses.append(run.embedding_l2 * _embedding_l2.embedding_norms(*own, batch))
  return sum(losses), terms, scalars


def _of_rows(part, loss, arguments, weight, axis_name):
  """`loss(*arguments)` of this device's rows. With `in_batch`, the loss sees the rows of all devices."""
  if axis_name is None or not part.in_batch:
    found = loss(*arguments)
    first = found[0] if isinstance(found, tuple) else found
    if jnp.shape(first) != jnp.shape(weight):
      raise InputError(f"a loss returned {list(jnp.shape(first))} values, expected one per row, {list(weight.shape)}")
    return found

  def gather(x):
    return jax.lax.all_gather(x, axis_name, tiled=True) if jnp.ndim(x) else x

  rows = weight.shape[0]

  def own(x):
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * rows, rows)

  return jax.tree.map(own, loss(*jax.tree.map(gather, arguments)))


def train_step(state: graph.TrainState, given, targets, batch, rng, epoch=0, *, run: graph.Run, axis_name=None,
               shaped=lambda params: params,  # parameters of the state -> parameters for networks
               whole=lambda tree: tree):  # replicates a tree on every device if tables are split
  """One optimiser step: (state, {loss: mean} and {"edge key/name": weighted mean of a scalar}).

  No other code reduces losses over examples.
  """
  weight_of = {e.key: e.weight(epoch) if callable(e.weight) else e.weight for e in graph.edges(run)}

  def total(params):
    base, terms, scalars = per_example_loss(shaped(params), given, batch, targets, jax.random.fold_in(rng, state.step),
                                            epoch, run=run, axis_name=axis_name, whole=whole)
    sums = {"base": jnp.sum(batch["weight"] * base)}
    sums |= {key: jnp.sum(weight * loss) for key, (loss, weight) in terms.items()}
    return run.loss_weight * sums["base"] + sum(w * sums[key] for key, w in weight_of.items()), (sums, terms, scalars)

  grads, (sums, terms, scalars) = jax.grad(total, has_aux=True)(state.params)
  size = jnp.sum(batch.get("real", batch["weight"]))  # with the rows without negatives, which count as 0
  named = {f"{key}/{name}": (jnp.sum(terms[key][1] * x), jnp.sum(terms[key][1]))
           for key, of_edge in scalars.items() for name, x in of_edge.items()}
  if axis_name is not None:
    grads, sums, size, named = jax.lax.psum((grads, sums, size, named), axis_name)
  if run.reduction == "mean":
    grads = jax.tree.map(lambda g: g / size, grads)
  updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = state._replace(step=state.step + 1, params=params, opt_state=opt_state,
                         memory=_remember_losses(run, state.memory, batch, terms, axis_name))
  return state, {k: v / size for k, v in sums.items()} | {k: x / jnp.maximum(w, 1e-9) for k, (x, w) in named.items()}


def _remember_losses(run, memory, batch, terms, axis_name):
  """Stores the losses of the batch's rows in the memory, for methods with `own_loss`."""
  for edge in graph.edges(run):
    if edge.kd.own_loss:
      loss, weight = terms[edge.key]
      rows, there = batch[f"kd_{edge.kd.rows}"], (weight > 0).astype(jnp.float32)
      before = memory[edge.key][graph.OWN_LOSS]

      def of_all(x, rows=rows, before=before):
        return jnp.zeros_like(before).at[rows].add(x)

      sums, counts = of_all(there * loss), of_all(there)
      if axis_name is not None:
        sums, counts = jax.lax.psum((sums, counts), axis_name)
      now = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), before)
      memory = memory | {edge.key: memory[edge.key] | {graph.OWN_LOSS: now}}
  return memory


def train_epoch(state: graph.TrainState, given, targets, batches: Batch, rng, *, run: graph.Run, **options):
  """Scans `train_step` with `options` over batches [S, B, ...]; (state, {loss: mean over steps}).

  Parameters stay 1-D across scan steps: XLA vectorises flat updates (three times as fast).
  """
  epoch = state.step // (batches["weight"].shape[0] * run.parts)  # from 0; all epochs have the same number of steps

  def like(flat, tree):
    return jax.tree.map(lambda x, y: x.reshape(y.shape), flat, tree)

  def shaped(params):
    return like(params, state.params)

  def step(s, b):
    return train_step(s, given, targets, b, rng, epoch, run=run, shaped=shaped, **options)

  flat, losses = jax.lax.scan(step, jax.tree.map(lambda x: x.reshape(-1) if jnp.ndim(x) else x, state), batches)
  return like(flat, state), jax.tree.map(jnp.mean, losses)
