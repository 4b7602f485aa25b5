"""Pure training functions: a run, its state, one step, one epoch.

A run is a graph: networks, and edges (learner <- teacher) along which methods distil. Without edges it
trains a teacher or a plain student: it is the same loop. Nothing here knows of devices or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.base import Array, Batch, InputError, Outputs
from kd_jax.objectives import tasks
from kd_jax.ranking import rank
from kd_jax.training import graph


def init(rng: Array, run: graph.Run, given: graph.Given, batch: Batch) -> graph.TrainState:
  """Initial state of the learners and of the methods' adapters, for batches like `batch` [B, ...]."""
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
  """Parameters of a module whose other collections are given."""
  return module.apply(constants, batch, rngs={"params": rng}, mutable=["params"])[1].get("params", {})


_CONTEXT = ("users", "items", "position", "place")  # fields of a batch that networks read


def forward(module, variables: dict, batches: dict[str, Batch], rng: Array | None = None) -> dict[str, Outputs]:
  """{key: Outputs} of one network for batches of the same users. Its tables are computed once.

  With `rng` the network learns: dropout is on. Only the base batch has positions in histories: what is distilled is
  what the network says of the whole history. It runs once where base and targets have the same rows (labelled data).
  """
  rngs = {} if rng is None else {"dropout": rng}
  tables = module.apply(variables, method="tables", rngs=rngs)
  apply = lambda batch: module.apply(variables, {k: batch[k] for k in _CONTEXT if k in batch}, tables, rngs=rngs)
  base = batches["base"]["users"] if "base" in batches and "items" not in batches["base"] else None
  outs = {key: apply(b) for key, b in batches.items() if key == "base" or ("items" not in b and b["users"] is not base)}
  outs |= {key: outs["base"].of(b.get("items")) for key, b in batches.items() if b["users"] is base}
  listed = {key: b for key, b in batches.items() if key not in outs}
  if listed:  # Candidates lie side by side in one apply, then are cut apart.
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
  out = module.apply(variables, {"users": users})  # the scores of it are never computed
  if out.query is None or (out.items is None and target["items"].size):
    raise InputError(f"--kd: the method needs representations, which {type(module).__name__} has not")
  own = out.query[:m] if out.items is None else jnp.concatenate([out.query[:m], out.items[target["items"]]])
  if "neighbours" not in target:
    return Outputs(None, own)
  return Outputs(None, own, jnp.concatenate([out.query[m:].reshape(m, near.shape[1], -1), out.items[near[m:]]]))


def _labelled(batch: Batch, labels) -> Batch:
  """In labelled data a row is a context with its labels, for the base loss and for methods alike."""
  users, weight = batch["users"], batch["weight"]
  return batch if labels is None else batch | {
      "labels": labels[users].astype(jnp.float32), "kd_users": users, "kd_users_weight": weight}


def _target(run, edge, given, batch, targets, epoch, axis_name=None) -> Batch:
  """The rows that a method sees of a batch."""
  if edge.kd.rows == "entities":
    items = batch.get("items", jnp.zeros(0, jnp.int32)).reshape(-1)  # labelled data has none
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
  if "labels" in batch:  # of the candidates
    fields["labels"] = batch["labels"]
    if "items" in fields:
      fields["labels"] = jnp.take_along_axis(batch["labels"], fields["items"], axis=1)
  return {"users": rows, "weight": weight * fields.pop("weight", 1.0), "epoch": epoch} | fields


def _sampled_items(run, edge, batch, targets, axis_name) -> tuple[Array, Array]:
  """The rows of a method that has what others sampled for users among its own."""
  others = [targets[e.key]["items"] for e in graph.edges(run)
            if e.learner == edge.learner and e.kd.rows == "users" and "items" in targets.get(e.key, {})]
  return _merged_items(batch, others, next(iter(targets[edge.key].values())).shape[0], axis_name)


def _merged_items(batch: Batch, samples: Sequence[Array], num_items: int, axis_name: str | None) -> tuple[Array, Array]:
  """(items [R], weights [R]): a batch's positives and the items of `samples` [U, C] of its users.

  An item weighs what the heaviest of its interactions, or of the users that it was sampled for, weighs. R is the
  number of all items, or of all that could be met if these are fewer; every device of the axis has a share.
  """
  met = [(batch["kd_items"], batch["kd_items_weight"])]
  for sample in samples:
    listed = sample[batch["kd_users"]]  # [M, C]
    met.append((listed, jnp.broadcast_to(batch["kd_users_weight"][:, None], listed.shape)))
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
  base = {k: v for k, v in batch.items() if k != "items"} if run.all_items else batch
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
  """What the teachers of an edge say; nothing flows back to them."""
  said = [outs[t][edge.key] if t in outs else Outputs(target.get("teacher")) for t in edge.teachers]
  teacher = Outputs(jnp.stack([x.scores for x in said])) if edge.kd.all_teachers else said[0]
  if "teacher" in target and not graph.teaches_live(run, edge):  # Scored once or read from a file.
    scores = target["teacher"]
    teacher = teacher._replace(scores=jnp.moveaxis(scores, 1, 0) if edge.kd.all_teachers else scores)
  return jax.lax.stop_gradient(teacher)


def edge_outputs(run: graph.Run, given: graph.Given, params: dict, edge: graph.Edge, batch: Batch) -> tuple[Outputs, Outputs, Batch]:
  """(student, teacher, target) of one edge at epoch 0, before anything was sampled."""
  alone = run._replace(kds=((edge.weight, edge.kd),))
  heard = _outputs(alone, given, params, _labelled(batch, given.labels), {}, jnp.zeros((), jnp.int32))[1]
  return next(heard[e.key] for e in graph.edges(alone) if (e.learner, e.teachers) == (edge.learner, edge.teachers))


def per_example_loss(params, given, batch, targets, rng, epoch=0, *, run, axis_name=None, whole=lambda tree: tree):
  """([B] base losses, {edge key: (losses, weights) of its rows}) of one batch."""
  batch, dropout = _labelled(batch, given.labels), jax.random.fold_in(rng, 1_000_000)
  dropout = dropout if axis_name is None else jax.random.fold_in(dropout, jax.lax.axis_index(axis_name))
  base, heard = _outputs(run, given, params, batch, targets, epoch, dropout, axis_name)
  terms = {}
  for j, edge in enumerate(graph.edges(run)):
    # Methods on representations have loops of lengths that data decide: devices are not to talk there.
    on_all = whole if edge.kd.rows == "entities" else lambda tree: tree
    student, teacher, target = on_all(heard[edge.key])
    if edge.kd.adapter is not None:
      own, rngs = on_all(params["adapters"][edge.key]), {"noise": jax.random.fold_in(rng, j)}
      student = on_all(edge.kd.adapter.apply({"params": own}, student, teacher, target, rngs=rngs))
    terms[edge.key] = on_all(_loss(edge, student, teacher, target, axis_name)), target["weight"]
  losses = [run.loss(base[name], batch) for name in run.learners]
  for name in run.learners if run.embedding_l2 else ():
    own = dict(run.networks)[name].apply(graph.variables(given, params, name), method=tasks.embeddings)
    losses.append(run.embedding_l2 * tasks.embedding_norms(*own, batch))
  return sum(losses), terms


def _loss(edge, student, teacher, target, axis_name):
  """The losses of this device's rows, compared with the rows of all devices if a method compares rows."""
  if axis_name is None or not edge.kd.in_batch:
    return edge.kd.loss(student, teacher, target)
  gather = lambda x: jax.lax.all_gather(x, axis_name, tiled=True) if jnp.ndim(x) else x
  loss = edge.kd.loss(*jax.tree.map(gather, (student, teacher, target)))
  rows = target["weight"].shape[0]
  return jax.lax.dynamic_slice_in_dim(loss, jax.lax.axis_index(axis_name) * rows, rows)


def train_step(state: graph.TrainState, given, targets, batch, rng, epoch=0, *, run: graph.Run, axis_name=None,
               shaped=lambda params: params,  # of the state's parameters those that networks read
               whole=lambda tree: tree):  # on every device, where tables are split
  """One optimiser step; (state, mean losses). The only reduction over examples in the code base."""
  weight_of = {e.key: e.weight(epoch) if callable(e.weight) else e.weight for e in graph.edges(run)}

  def total(params):
    base, terms = per_example_loss(shaped(params), given, batch, targets, jax.random.fold_in(rng, state.step), epoch,
                                   run=run, axis_name=axis_name, whole=whole)
    sums = {"base": jnp.sum(batch["weight"] * base)}
    sums |= {key: jnp.sum(weight * loss) for key, (loss, weight) in terms.items()}
    return run.loss_weight * sums["base"] + sum(w * sums[key] for key, w in weight_of.items()), sums

  grads, sums = jax.grad(total, has_aux=True)(state.params)
  size = jnp.sum(batch["weight"])
  if axis_name is not None:
    grads, sums, size = jax.lax.psum((grads, sums, size), axis_name)
  if run.reduction == "mean":
    grads = jax.tree.map(lambda g: g / size, grads)
  updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
  return state, {k: v / size for k, v in sums.items()}


def train_epoch(state: graph.TrainState, given, targets, batches: Batch, rng, *, run: graph.Run, **options):
  """Scans `train_step` with `options` over batches [S, B, ...]; (state, {loss: mean over steps}).

  Arrays are flat between steps: there XLA updates 16 numbers at a time, however wide a row; three times as fast.
  """
  epoch = state.step // (batches["weight"].shape[0] * run.parts)  # from 0; every epoch has as many steps
  like = lambda flat, tree: jax.tree.map(lambda x, y: x.reshape(y.shape), flat, tree)
  shaped = lambda params: like(params, state.params)
  step = lambda s, b: train_step(s, given, targets, b, rng, epoch, run=run, shaped=shaped, **options)
  flat, losses = jax.lax.scan(step, jax.tree.map(lambda x: x.reshape(-1) if jnp.ndim(x) else x, state), batches)
  return like(flat, state), jax.tree.map(jnp.mean, losses)
