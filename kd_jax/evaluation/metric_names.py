"""Names of metrics in options, tables and reports, and the metrics for these names.

  ndcg@10                 a factory of kd_jax.metrics, with k=10; any cut-off is possible
  hit@10(sampled 499)     the same, ranked among 499 sampled items
  auc                     a factory of kd_jax.label_metrics, for labelled data
  mine.coverage@10        the factory `coverage` in the user's module `mine`; or as a call: mine.coverage(k=10, base=2)
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from kd_jax import registry
from kd_jax.base import Dataset, InputError, LabelMetric, Metric

CUTOFFS = (5, 10, 20, 50)
NAMES = ("recall", "precision", "f1", "ndcg", "hit", "mrr", "map")  # computed at every cut-off
LAST = "epoch"  # a value of `monitor`: the last epoch counts as the best
_USUAL = {"interactions": "ndcg@10", "tags": "map", "clicks": "auc"}
_SAMPLED = re.compile(r"(.*[^ ])\(sampled ([1-9]\d*)\)")
# Suffixes that a report adds to the name of a metric.
_ADDED = re.compile(r" ?\((warm|cold|popular|unpopular|known|unknown|active|inactive|own epoch|"
                    r"sampled \d+(, own epoch)?)\)")
_CUTOFF = re.compile(r"([\w.]+)@([1-9]\d{0,8})", re.ASCII)

_NEEDS = {"train": "all training interactions in memory", "categories": "categorical fields of items",
          "vectors": "vectors of items"}

Metrics: TypeAlias = Mapping[str, Metric | LabelMetric]


class Name(NamedTuple):
  """A parsed name of a metric."""

  call: registry.Call
  sampled: int  # candidates of the sampled protocol, or 0
  text: str  # without the protocol


def split(names: str) -> tuple[str, ...]:
  """Splits names at commas; commas inside brackets belong to a call."""
  if not names.strip():
    return ()
  parts, depth = [""], 0
  for character in names:
    depth += (character in "([") - (character in ")]")
    if character == "," and depth <= 0:
      parts.append("")
    else:
      parts[-1] += character
  return tuple(part.strip() for part in parts)


def read(text: str, kind: str) -> Name:
  """Parses the name of a metric for a kind of data, see `Dataset.kind`. Raises ValueError for an unknown name."""
  protocol = _SAMPLED.fullmatch(text)
  name, sampled = (protocol[1], int(protocol[2])) if protocol else (text, 0)
  package = "metrics" if kind == "interactions" else "label_metrics"
  cutoff = _CUTOFF.fullmatch(name)
  own = "." in re.split("[(@]", name)[0]
  if not own and (kind == "interactions") != bool(cutoff):
    raise ValueError(f"{text!r} is not a metric like {_examples(kind)}")
  if cutoff and not own and cutoff[1] not in registry.names(package):
    raise ValueError(f"{text!r} is not a metric like {_examples(kind)}")
  try:
    call = registry.parse(package, f"{cutoff[1]}(k={cutoff[2]})" if cutoff else name, "metric")
  except InputError as error:
    raise ValueError(str(error).partition(": ")[2]) from None
  return Name(call, sampled, name)


def check(text: str) -> None:
  """Raises ValueError if a name is not valid for any kind of data. Does not import the user's metrics."""
  if "." not in text.partition("(")[0] and text not in registry.names("label_metrics"):
    read(text, "interactions")


def check_cutoffs(argument: str, names: str, kind: str, num_items: int) -> None:
  """Raises InputError, which names `argument`, for a cut-off above the number of items. Unknown names are left out."""
  for name in split(names) if kind == "interactions" else ():
    with contextlib.suppress(ValueError):
      k = dict(read(name, kind).call.arguments).get("k")
      if isinstance(k, int) and k > num_items:
        break
  else:
    return
  raise InputError(f"`{argument}={name}`: the data has {num_items} items")


def check_needs(argument: str, metrics: Metrics, dataset: Dataset) -> None:
  """Raises InputError, which names `argument`, for a metric that reads what the data does not have."""
  features = dataset.item_features
  has = {"popularity": True, "train": dataset.stream is None, "categories": features and features.fields,
         "vectors": features and features.vectors}
  for name, metric in metrics.items():
    for need in getattr(metric, "needs", ()):
      if not has[need]:
        raise InputError(f"`{argument}={name}`: needs {_NEEDS[need]}; {dataset.name} has none"
                         if need != "train" else f"`{argument}={name}`: needs {_NEEDS[need]}; they are streamed")


def _examples(kind):
  if kind != "interactions":
    return ", ".join(of_kind(kind))
  return f"{', '.join(f'{name}@10' for name in registry.names('metrics'))} or hit@10(sampled 499)"


@functools.cache
def _build(package: str, call: registry.Call) -> Metric | LabelMetric:
  return registry.build(package, call)


def build(text: str, kind: str) -> Metric | LabelMetric:
  """Builds the metric of a name. Raises ValueError for an unknown name, or another kind of data."""
  found = _build("metrics" if kind == "interactions" else "label_metrics", read(text, kind).call)
  wanted = Metric if kind == "interactions" else LabelMetric
  if not isinstance(found, wanted):
    raise ValueError(f"{text!r} returns {type(found).__name__}, not a {wanted.__name__}")
  if isinstance(found, LabelMetric) and kind not in found.on:
    raise ValueError(f"{text!r} is not a metric like {_examples(kind)}")
  return found


def of_kind(kind: str) -> dict[str, LabelMetric]:
  """{name: metric} of all metrics for a kind of labelled data."""
  return {name: metric for name in registry.names("label_metrics")
          if kind in (metric := _build("label_metrics", registry.Call(name))).on}


def usual(kind: str, cutoffs: Iterable[int] = CUTOFFS) -> dict[str, Metric | LabelMetric]:
  """The default metrics: for rankings, at these cut-offs; for labelled data, all."""
  if kind != "interactions":
    return dict(of_kind(kind))
  return {f"{name}@{k}": build(f"{name}@{k}", kind) for k in cutoffs for name in NAMES}


def chosen(names: Iterable[str], kind: str) -> dict[str, Metric | LabelMetric]:
  """The default metrics, with the cut-offs in `names`, and the metrics in `names`. Raises ValueError."""
  names = [name for name in names if name != LAST]
  texts = [read(name, kind).text for name in names]
  cutoffs = {int(found[2]) for text in texts if (found := _CUTOFF.fullmatch(text)) and "." not in found[1]}
  own = {text: build(name, kind) for text, name in zip(texts, names, strict=True)}
  return usual(kind, sorted({*CUTOFFS, *cutoffs})) | own


def default(kind: str) -> str:
  """The default metric that chooses the best epoch."""
  return _USUAL[kind]


def goodness(metric: Metric | LabelMetric, value: Any) -> Any:
  """A value of a metric, or an array of values, as numbers of which the higher one is better."""
  best = getattr(metric, "best", None)
  if best is not None:
    return -abs(value - best)
  return value if metric.higher_is_better else -value


def of_column(column: str) -> Metric | LabelMetric:
  """The metric of a column: of a name, perhaps with suffixes for group, candidates and epoch. Raises ValueError."""
  name = computed(column)
  ranked = "@" in name or "." in name.partition("(")[0]
  return _build("metrics" if ranked else "label_metrics", read(name, "interactions" if ranked else "clicks").call)


def computed(column: str) -> str:
  """The metric of a column, without the suffixes for epoch, candidates and group of items or users."""
  return _ADDED.sub("", column)


def better(name: str, value: float, than: float) -> bool:
  """Whether `value` of metric `name` is better than `than`."""
  if name == LAST:
    return value > than
  metric = of_column(name)
  return goodness(metric, value) > goodness(metric, than)
