"""The cache of compiled programs on disk. It only saves time: if an entry is damaged, the program is compiled again."""

from __future__ import annotations

import pathlib
import re
import warnings

import jax

_DAMAGED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([\w.-]+)'")


def cache_in(folder: pathlib.Path) -> None:
  """From now on, keeps all compiled programs in `folder`, so that the next process starts faster."""
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  if warnings.showwarning is not _show:
    _others.append(warnings.showwarning)
    warnings.showwarning = _show


_others: list = []  # what shows all other warnings, the last


def _show(message, category, filename, lineno, file=None, line=None):
  """Removes the entries that a warning calls damaged; shows every other warning.

  JAX writes an entry in place and never again: one that a kill or a full disk cut short would cost its compilation, and
  a warning, in every later run.
  """
  found = _DAMAGED.match(str(message))
  folder = jax.config.jax_compilation_cache_dir
  if not found or not folder:
    _others[-1](message, category, filename, lineno, file, line)
    return
  for path in pathlib.Path(folder).glob(f"{found[2]}-*"):
    path.unlink(missing_ok=True)
