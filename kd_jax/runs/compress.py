"""Compresses a finished run into another finished run, which every reader of runs reads.

The new run has the packed parameters in OUT/compressed, and in its checkpoint what they unpack to, so that it is
evaluated, distilled and trained on (`init_from`) with exactly the values that the packed form has.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data, registry
from kd_jax.base import STUDENT, Compressor, Dataset, InputError
from kd_jax.compression import _chain
from kd_jax.evaluation import model_selection, protocols, streaming
from kd_jax.storage import checkpoint, compressed, run_directory, sealed
from kd_jax.teachers import loading, warm_start
from kd_jax.teachers.fitted import Fitted
from kd_jax.training import windows


def chain(text: str) -> list[tuple[str, Compressor]]:
  """[(text, compressor), ...] of names or calls with + between them. Raises InputError."""
  calls = registry.parse_sum("compression", text, "compress")
  if not calls or any(weight != 1 for weight, _ in calls):
    raise InputError(f"`compress={text}`: compressors with + between them, without weights: "
                     f"{', '.join(registry.names('compression'))}")
  return [(str(call), registry.build("compression", call)) for _, call in calls]


def compress_run(run: str | os.PathLike, text: str, workdir: str | os.PathLike, data_dir: str | None = None,
                 cache_dir: str | None = None, allow_code: str | None = None) -> dict[str, Any]:
  """Compresses the best epoch of `run` with the chain `text`; returns run.json of the new run in `workdir`.

  A second call with the same arguments changes nothing. Raises InputError: no finished run, a compressor that changes
  nothing, or `workdir` holds something else.
  """
  registry.allow_code(allow_code)
  made, source = chain(text), run_directory.read_finished(run)
  flags = source.flags | {"compress": " + ".join(name for name, _ in made)}
  if os.path.realpath(run) == os.path.realpath(workdir):
    raise InputError(f"`workdir={workdir}`: is the run itself; choose another directory")
  run_directory.check_flags(workdir, flags, {}, int(flags["epochs"]), True)
  if (done := _done(workdir, source)) is not None:
    return done
  dataset = data.load(source.info["data"], data_dir, cache_dir, memory=source.info.get("data_memory", 0.0),
                      expected=source.info["hashes"])
  fitted, start = loading.open_run(run, dataset), time.perf_counter()
  named = {name: np.asarray(x) for name, x in warm_start.named(fitted.params).items()}
  packed = _chain.pack(named, made, popularity(named, dataset))
  params = _tree(fitted.params, _chain.unpack(packed, [compressor for _, compressor in made]))
  seconds = time.perf_counter() - start
  validation = _validate(fitted, params, source.result["monitor"])
  os.makedirs(workdir, exist_ok=True)
  with sealed.lock(workdir):
    run_directory.check_flags(workdir, flags, {}, int(flags["epochs"]), True)
    return _write(workdir, flags, source, packed, params, validation, seconds)


def popularity(parameters: dict[str, Any], dataset: Dataset) -> dict[str, np.ndarray]:
  """{name: training interactions [rows]} of the matrices that are tables of users or of items.

  If there are as many users as items, the name of the parameter decides.
  """
  if dataset.contexts is not None:
    return {}
  sides = {"user": protocols.training_counts(dataset), "item": dataset.item_popularity()}
  found = {}
  for name, x in parameters.items():
    fitting = [side for side, counts in sides.items() if np.ndim(x) == 2 and len(x) == len(counts)]
    if fitting:
      found[name] = sides[next((side for side in fitting if side in name), fitting[-1])]
  return found


def _done(workdir, source) -> dict[str, Any] | None:
  """run.json of the finished run in `workdir`; None if there is none. Raises InputError if it is of another source."""
  if not (pathlib.Path(workdir) / run_directory.SEAL).exists():
    return None
  info = run_directory.read_finished(workdir).info
  if info.get("compression", {}).get("seal") != source.seal:
    raise InputError(f"`workdir={workdir}`: was made from another training of the run; choose another directory")
  return info


def _tree(like, named):
  """The arrays of `named` in the structure of `like`."""
  names = list(warm_start.named(like))
  return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in names])


def _validate(fitted: Fitted, params, monitor: str) -> dict[str, float]:
  """The validation metrics of the compressed model. {} for data without a validation split."""
  dataset, metrics = fitted.dataset, model_selection.monitor(monitor, fitted.dataset.kind)
  if dataset.stream is not None:
    module = windows.windowed(fitted.module, params, dataset)
    return protocols.means(streaming.measure(module, jax.tree.map(jnp.asarray, params), streaming.Protocol(
        dataset, "validation", sampled=metrics.sampled), metrics.metrics)[1])
  layout = protocols.layout(dataset, "validation", sampled=metrics.sampled, only_sampled=metrics.only_sampled)
  variables = jax.tree.map(jnp.asarray, {"params": params, "constants": fitted.constants})
  return protocols.means(protocols.measure(fitted.module, variables, layout, metrics.metrics)[1])


def _write(workdir, flags: dict[str, str], source: run_directory.Finished, packed: _chain.Compressed, params,
           validation, seconds) -> dict[str, Any]:
  about = {"chain": flags["compress"], "seal": source.seal, "seconds": seconds}
  # A compressor may count interactions, so that nothing can be said of the privacy of what it makes.
  info = {name: x for name, x in source.info.items() if name != "privacy"} | run_directory.versions() | {
      "bytes": packed.num_bytes, "bytes_uncompressed": source.info["bytes"], "compression": about,
      "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}"}
  run_directory.start(workdir, flags, info)  # first: after a kill, the same command goes on in this directory
  written = compressed.write(workdir, packed.arrays, {"chain": about["chain"], "steps": packed.steps})
  info = info | {"compression": about | written}
  run_directory.start(workdir, flags, info)
  epoch = source.result["epochs"]
  checkpoint.save(workdir, epoch, {}, {STUDENT: params}, {"compressed": source.seal})
  result = source.result | {"validation": validation, "seconds": source.result["seconds"] + seconds}
  sealed.write_json_atomic(pathlib.Path(workdir) / run_directory.RESULT, result)
  run_directory.seal(workdir)
  return info


def unpacked(workdir: str | os.PathLike) -> dict[str, np.ndarray]:
  """{name: array} of the parameters that the packed form of a compressed run unpacks to.

  Raises InputError: no compressed run, or its packed form is damaged or that of another run.
  """
  about = run_directory.read_finished(workdir).info.get("compression")
  if about is None:
    raise InputError(f"{workdir}: is not a compressed run")
  arrays, metadata = compressed.read(workdir, about["sha256"])
  steps: Sequence[Compressor] = [compressor for _, compressor in chain(metadata["chain"])]
  return _chain.unpack(_chain.Compressed(arrays, metadata["steps"]), steps)
