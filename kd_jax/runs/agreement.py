"""What is equal in all processes that train together: the facts that `processes.agree` compares before a run starts.

Each process draws, evaluates and restores on its own, so that a difference would train on without a word, or for ever.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax

from kd_jax.devices.rendezvous import Facts
from kd_jax.runs.options import FitOptions, teachers_of, text_of, texts
from kd_jax.storage import checkpoint, sealed

_SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_default_matmul_precision", "jax_threefry_partitionable")


def of_options(several: Sequence[FitOptions], found: Sequence[dict[str, Any] | None]) -> Facts:
  """Facts before data is loaded: options of all runs, what is in their directories, and settings of JAX.

  `found` is the result.json of each finished run, else None.
  """
  facts = {"runs": f"runs: {len(several)}"}
  for run, (options, result) in enumerate(zip(several, found, strict=True)):
    where = "no workdir" if options.workdir is None else f"`workdir={os.fspath(options.workdir)}`"
    facts[f"{run} workdir"] = where
    facts |= {f"{run} {name}": f"`{name}={text}`" for name, text in texts(options).items()}
    facts[f"{run} state"] = f"{where} {_state(options, result)}"
  return facts | {name: f"{name}={getattr(jax.config, name)}" for name in _SETTINGS}


def _state(options, result) -> str:
  if result is not None:
    return "with a finished run"
  if options.workdir is None or checkpoint.latest(options.workdir) is None:
    return "without a checkpoint"
  manifest = checkpoint.newest_manifest(options.workdir)
  return f"with checkpoint {manifest.parent.name}, sha256 {sealed.hash_file(manifest)[:12]}"


def of_content(options: Sequence[FitOptions], infos: Sequence[dict[str, Any]]) -> Facts:
  """Facts after loading: hashes of the data, teachers, features and `init_from` of all runs, and versions.

  `infos` is what run.json will hold of each run.
  """
  facts: Facts = {}
  for run, (one, info) in enumerate(zip(options, infos, strict=True)):
    name = text_of(one.data)
    facts |= {f"{run} {part}": f"`data={name}` with {part} {value[:12]}" for part, value in info["hashes"].items()}
    sources = {"teacher": teachers_of(one), "init_from": [one.init_from],
               "features": [file["path"] for file in info["features"]]}
    for argument, named in sources.items():
      for number, (source, content) in enumerate(zip(named, info[argument], strict=False)):
        facts[f"{run} {argument} {number}"] = f"`{argument}={text_of(source)}` with sha256 {_hash(content)[:12]}"
    facts |= {package: f"{package} {version}" for package, version in info["versions"].items()}
    facts |= {"python": f"Python {info['python']}", "commit": f"commit {info['commit']}"}
  return facts


def _hash(content) -> str:
  return hashlib.sha256(sealed.to_json(content)).hexdigest()
