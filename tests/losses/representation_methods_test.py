"""Methods on representations against their formulas in float64 and loops, and the traps of each."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly

from kd_jax import registry
from kd_jax.base import Outputs
from kd_jax.losses import _experts

DS, DT, USERS, ITEMS = 3, 5, 5, 6


def huber(a, b):
  return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def norm(x):
  return float(np.sqrt(sum(v * v for v in x)))


def cosine(a, b):
  return float(a @ b) / (norm(a) * norm(b))


def make(name, options, seed=0, epoch=2):
  """A method, its adapter's parameters, vectors of users and items, a batch whose entities are distinct."""
  rng = np.random.default_rng(seed)
  kd = registry.build("losses", registry.Call(name, tuple(sorted(options.items()))))
  s, t = (rng.normal(size=(USERS + ITEMS, d)).astype(np.float32) for d in (DS, DT))
  batch = {"users": jnp.arange(USERS) * 3, "items": jnp.arange(ITEMS) * 2 + 1, "weight": jnp.ones(USERS + ITEMS),
           "is_user": jnp.arange(USERS + ITEMS) < USERS, "epoch": jnp.int32(epoch)}
  params = {}
  if kd.adapter is not None:
    rngs = {"params": jax.random.key(seed), "noise": jax.random.key(0)}
    params = quickly(kd.adapter.init)(rngs, Outputs(None, s), Outputs(None, t), batch)["params"]
  return types.SimpleNamespace(kd=kd, params=params, s=s, t=t, batch=batch, options=options)


def of_rows(kd, params, s, t, batch):
  """The method's value of every row, as the frame asks for it."""
  student, teacher = Outputs(None, s), Outputs(None, t)
  if kd.adapter is not None:
    student = kd.adapter.apply({"params": params}, student, teacher, batch, rngs={"noise": jax.random.key(7)})
  return kd.loss(student, teacher, batch)


_rows = quickly(of_rows, static_argnums=0)  # op by op it takes longer still


def rows(m, batch=None):
  return _rows(m.kd, m.params, m.s, m.t, m.batch if batch is None else batch)


def gradient(m):
  """The weighted sum of the rows, the rows, and the gradient of the sum by the student's vectors."""
  return _gradient(m.kd, m.params, m.s, m.t, m.batch)


@functools.partial(quickly, static_argnums=0)
def _gradient(kd, params, s, t, batch):
  def total(s):
    each = of_rows(kd, params, s, t, batch)
    return jnp.sum(batch["weight"] * each), each

  (value, each), found = jax.value_and_grad(total, has_aux=True)(s)
  return value, each, found


def with_noise(m):
  """With the number of experts and each entity's Gumbel noise: only drawn, not used, as the method does."""
  m.count = m.options.get("experts", m.options.get("groups"))
  m.noise = [noise(m, *side_of(i)) for i in range(USERS + ITEMS)] if m.count else []
  return m


def noise(m, side, row):
  class Key(_experts.nn.Module):
    @_experts.nn.compact
    def __call__(self):
      return Inner(name="experts")()

  class Inner(_experts.nn.Module):
    def __call__(self):
      return self.make_rng("noise")

  key = jax.random.fold_in(Key().apply({}, rngs={"noise": jax.random.key(7)}), side)
  entity = int(m.batch[("users", "items")[side]][row])
  return np.asarray(jax.random.gumbel(jax.random.fold_in(key, entity), (m.count,)), np.float64)


def side_of(i):
  return (0, i) if i < USERS else (1, i - USERS)


def fitnet_reference(m, s):
  total = 0.0
  for i in range(len(s)):
    side = ("users", "items")[side_of(i)[0]]
    x = s[i]
    if m.options.get("hidden"):
      layer = m.params[f"{side}_hidden"]
      x = np.maximum(x @ np.float64(layer["kernel"]) + np.float64(layer["bias"]), 0)
    x, t = x @ np.float64(m.params[side]["kernel"]) + np.float64(m.params[side]["bias"]), np.float64(m.t[i])
    if m.options.get("normalise"):
      x, t = x / norm(x), t / norm(t)
    total += norm(t - x) ** 2
  return total


def gram_schmidt(v):
  columns = []
  for c in range(v.shape[1]):
    x = v[:, c] - sum((q * (q @ v[:, c]) for q in columns), np.zeros(len(v)))
    columns.append(x / norm(x))
  return np.stack(columns, 1)


def smooth_l1(x):
  """Below 1 a parabola, above it a line of slope 1."""
  return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def vkd_reference(m, s):
  total, kind = 0.0, m.options.get("normalisation", "layer_norm")
  for side, members in enumerate((range(USERS), range(USERS, USERS + ITEMS))):
    t = np.float64(m.t[list(members)])
    p = gram_schmidt(np.float64(m.params[("users", "items")[side]])).T
    np.testing.assert_allclose(p @ p.T, np.eye(DS), atol=1e-12)
    if kind == "layer_norm":
      t = np.array([(row - row.mean()) / np.sqrt(row.var() + 1e-5) for row in t])
    elif kind != "none":
      t = t - t.mean(0)
    if kind == "standardise":
      t = t / np.sqrt(np.mean(t**2, 0))
    for row, i in enumerate(members):
      x, y = s[i] @ p, t[row]
      if kind == "unit":
        x, y = x / norm(x), y / norm(y)
      squared = m.options.get("distance") == "squared"
      total += norm(y - x) ** 2 if squared else np.mean(smooth_l1(y - x))
  return total


def hints(m, s):
  """(|t - sum_m g_m E_m(s)|^2, group) of every entity."""
  start, end, epochs = m.options["start_temperature"], m.options["end_temperature"], m.options["epochs"]
  temperature = start * (end / start) ** (min(int(m.batch["epoch"]), epochs) / epochs)
  found = []
  for i in range(len(s)):
    side = side_of(i)[0]
    p = {k: np.float64(v) for k, v in m.params["experts"][("users", "items")[side]].items()}
    t = np.float64(m.t[i])
    logits = t @ p["gate"] + p["gate_bias"]
    z = (logits - np.log(np.sum(np.exp(logits))) + m.noise[i]) / temperature
    g = np.exp(z - z.max()) / np.sum(np.exp(z - z.max()))
    rebuilt = np.zeros(DT)
    for k in range(m.count):
      rebuilt += g[k] * (np.maximum(s[i] @ p["w1"][k] + p["b1"][k], 0) @ p["w2"][k] + p["b2"][k])
    found.append((norm(t - rebuilt) ** 2, side * m.count + int(np.argmax(logits))))
  return found


def de_reference(m, s):
  return sum(loss * (1 if i < USERS else 0.5) for i, (loss, _) in enumerate(hints(m, s)))


def ftd_reference(m, s):
  t = np.float64(m.t)
  return sum((cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i in range(len(s)) for j in range(len(s)))


def htd_reference(m, s):
  t, (losses, group) = np.float64(m.t), zip(*hints(m, s), strict=True)
  topology, everyone = 0.0, range(len(s))
  for i in everyone:
    for j in everyone:
      if group[i] == group[j] and (cosine(t[i], t[j]) > 0 or not m.options["positive_only"]):
        topology += (cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2
  fixed = np.float64(m.s) if m.options["detach"] else s  # a detached prototype stays where the student was

  def of(x):
    return [np.mean([x[i] for i in everyone if group[i] == g], axis=0) for g in sorted(set(group))]

  p_s, p_t = of(fixed), of(t)
  others = (p_s, p_t) if m.options["group_topology"] == "prototypes" else (s, t)
  for a_s, a_t in zip(p_s, p_t, strict=True):
    for b_s, b_t in zip(*others, strict=True):
      topology += (cosine(a_s, b_s) - cosine(a_t, b_t)) ** 2
  return m.options["alpha"] * topology + (1 - m.options["alpha"]) * sum(losses)


def rkd_reference(m, s):
  """Means over all pairs and triplets of different entities, times the number of entities."""
  t, n = np.float64(m.t), range(len(s))
  pairs = [(i, j) for i in n for j in n if i != j]

  def mean(x):
    return sum(norm(x[i] - x[j]) for i, j in pairs) / len(pairs)

  distance = [huber(norm(s[i] - s[j]) / mean(s), norm(t[i] - t[j]) / mean(t)) for i, j in pairs]
  angle = [huber(cosine(s[j] - s[i], s[k] - s[i]), cosine(t[j] - t[i], t[k] - t[i]))
           for i, j in pairs for k in n if k not in (i, j)]
  return len(s) * (25 * np.mean(distance) + 50 * np.mean(angle))


GATE = {"start_temperature": 1.0, "end_temperature": 0.1, "epochs": 4}
HTD = GATE | {"groups": 3, "alpha": 0.3, "positive_only": True, "detach": True, "group_topology": "entities"}
CASES = [
  ("fitnet", fitnet_reference, {}), ("fitnet", fitnet_reference, {"normalise": True, "hidden": 4}),
  ("vkd", vkd_reference, {}), ("vkd", vkd_reference, {"normalisation": "standardise"}),
  *(("vkd", vkd_reference, {"normalisation": n, "distance": "squared"})
    for n in ("layer_norm", "standardise", "unit", "centre", "none")),
  ("de", de_reference, GATE | {"experts": 4}), ("ftd", ftd_reference, {}),
  ("htd", htd_reference, HTD), ("htd", htd_reference, HTD | {"positive_only": False, "detach": False}),
  ("htd", htd_reference, HTD | {"group_topology": "prototypes", "detach": False}),
  ("htd", htd_reference, HTD | {"group_topology": "prototypes"}), ("rkd", rkd_reference, {}),
]
ALL = [("fitnet", {}), ("vkd", {}), ("de", GATE | {"experts": 4}), ("ftd", {}), ("htd", HTD), ("rkd", {})]


@pytest.mark.parametrize(("name", "reference", "options"), CASES)
def test_value_and_gradient_are_the_formula(name, reference, options):
  m = with_noise(make(name, options))
  s, step = np.float64(m.s), 1e-5
  value, each, found = gradient(m)
  assert each.shape == (USERS + ITEMS,)
  np.testing.assert_allclose(value, reference(m, s), rtol=1e-5)
  expected = np.zeros_like(s)
  for place in np.ndindex(s.shape):
    moved = [s.copy(), s.copy()]
    moved[0][place] += step
    moved[1][place] -= step
    expected[place] = (reference(m, moved[0]) - reference(m, moved[1])) / (2 * step)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "options"), ALL)
def test_padding_rows_of_zeros_change_nothing_and_are_finite(name, options):
  m = make(name, options)

  def wide(x):
    return np.concatenate([x[:USERS], np.zeros((2, x.shape[1])), x[USERS:], np.zeros((2, x.shape[1]))])

  p = types.SimpleNamespace(**vars(m) | {"s": np.float32(wide(m.s)), "t": np.float32(wide(m.t))})

  def pad(x):
    return jnp.concatenate([x, jnp.zeros(2, x.dtype)])

  p.batch = m.batch | {"users": pad(m.batch["users"]), "items": pad(m.batch["items"]),
                       "is_user": jnp.arange(USERS + ITEMS + 4) < USERS + 2}
  real = np.r_[:USERS, USERS + 2:USERS + 2 + ITEMS]
  p.batch["weight"] = jnp.zeros(USERS + ITEMS + 4).at[real].set(1.0)
  plain, _, gradient_plain = gradient(m)
  padded, each, gradient_padded = gradient(p)
  assert np.isfinite(each).all() and np.isfinite(gradient_padded).all()
  np.testing.assert_allclose(padded, plain, rtol=1e-5)
  np.testing.assert_allclose(gradient_padded[real], gradient_plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_an_entity_met_twice_counts_once_or_twice_by_its_weight(name, options):
  """Weight 0 at the second place, as `kd_per="user"` gives it: the published sum over distinct entities."""
  m = make(name, options)

  def twice(x):
    return np.concatenate([x, x[-1:]])

  again = types.SimpleNamespace(**vars(m) | {"s": twice(m.s), "t": twice(m.t)})
  total = {}
  for weights in ((1.0, 0.0), (1.0, 1.0), (2.0, 0.0)):
    batch = m.batch | {"items": jnp.append(m.batch["items"], m.batch["items"][-1]),
                       "is_user": jnp.append(m.batch["is_user"], False)}
    batch["weight"] = jnp.append(m.batch["weight"][:-1], jnp.array(weights))
    total[weights] = float(jnp.sum(batch["weight"] * rows(again, batch=batch)))
  once = float(jnp.sum(rows(m)))
  assert total[1.0, 0.0] == pytest.approx(once, rel=1e-5)
  assert total[1.0, 1.0] == pytest.approx(total[2.0, 0.0], rel=1e-5)
  assert total[1.0, 1.0] != pytest.approx(once, rel=1e-4)


@pytest.mark.parametrize("positive_only", [True, False])
def test_htd_leaves_out_pairs_of_one_group_whose_teacher_cosine_is_not_positive(positive_only):
  """Two users of one group: teacher cosine -1, student cosine 0, so each ordered pair would add 1."""
  kd = registry.build("losses", registry.Call("htd", (("alpha", 1.0), ("groups", 2), ("positive_only", positive_only))))
  s, t = jnp.eye(2), jnp.array([[1.0, 0.0], [-3.0, 0.0]])
  grouped = sys.modules[kd.loss.__module__].Grouped(s, t, jnp.zeros(2, jnp.int32))
  found = kd.loss(grouped, Outputs(None, t), {"weight": jnp.ones(2)})
  # The prototypes: the student's at 45 degrees to both, the teacher's along its second user.
  to_prototype = np.array([(np.sqrt(0.5) + 1) ** 2, (np.sqrt(0.5) - 1) ** 2])
  np.testing.assert_allclose(found, to_prototype + (0 if positive_only else 1), rtol=1e-5)


def test_rkd_draws_distinct_entities_afresh_each_epoch_whatever_the_order_of_rows():
  m = make("rkd", {"anchors": 4})
  shuffled = np.random.default_rng(1).permutation(USERS)
  order = np.r_[shuffled, np.arange(USERS, USERS + ITEMS)]
  p = types.SimpleNamespace(**vars(m) | {"s": m.s[order], "t": m.t[order]})
  p.batch = m.batch | {"users": m.batch["users"][shuffled]}
  np.testing.assert_allclose(rows(p), rows(m)[order], rtol=1e-4)
  assert not np.allclose(rows(m, batch=m.batch | {"epoch": 3}), rows(m))
  # Angles are means over anchors, right on average; distances are not, as mu comes from the same anchors.
  m, full = (make("rkd", {"anchors": n, "distance_weight": 0.0}) for n in (4, 32))
  draws = [np.sum(rows(m, batch=m.batch | {"epoch": e})) for e in range(100)]
  error = np.std(draws) / 10
  assert 0 < error < 0.05 * np.mean(draws) and abs(np.mean(draws) - np.sum(rows(full))) < 3 * error
