"""How a process finds the others that it trains with."""

from __future__ import annotations

import dataclasses

from kd_jax.base import check_options, option


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
  """Of `processes.joined`; without a coordinator the process is alone."""

  coordinator: str | None = option(None, "HOST:PORT of process 0, if several processes train together (docs/scale.md); "
                                   "auto: read from SLURM, Kubernetes or the TPU pod.")
  num_processes: int | None = option(None, "How many processes train together.", above=0)
  process_id: int | None = option(None, "Which of them this is, from 0; process 0 writes files and prints.", least=0)
  connect_seconds: int = option(60, "How long a process waits for the others at the start, in seconds.", above=0,
                                most=10**6)

  def __post_init__(self):
    check_options(self)
