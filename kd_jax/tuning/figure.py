"""The figure of a search: values of trials, the best so far, and the importance of what was searched."""

from __future__ import annotations

import pathlib

from kd_jax.tuning import study

_COLORS = {"complete": "#0072B2", "best": "#D55E00"}  # of Okabe and Ito, which colour-blind readers tell apart


def write(found: study.Found, path: pathlib.Path) -> None:
  """Writes a PNG: trials by number, with the best so far, and the importance of every name."""
  import matplotlib
  from matplotlib import figure

  matplotlib.use("Agg")
  of_names = found.importances
  drawn = figure.Figure(figsize=(7.5, 3 + 0.27 * len(of_names)), layout="constrained")
  trials, shares = drawn.subplots(2, 1, height_ratios=[3, max(1, 0.27 * len(of_names))])
  done = [x for x in found.trials if x.state == "complete"]
  numbers, values = [x.number for x in done], [x.value for x in done]
  best = [study.complete(found.metric, done[: n + 1])[0].value for n in range(len(done))]
  trials.plot(numbers, values, "o", color=_COLORS["complete"], label="trial")
  trials.step(numbers, best, where="post", color=_COLORS["best"], label="best so far")
  trials.set_xlabel("trial")
  trials.set_ylabel(f"validation {found.metric}")
  trials.legend()
  names = sorted(of_names, key=of_names.get)
  shares.barh(names, [of_names[name] for name in names], color=_COLORS["complete"])
  shares.set_xlabel("importance (PED-ANOVA, sum 1)" if names else "importance: too few trials")
  drawn.savefig(path, dpi=120)
