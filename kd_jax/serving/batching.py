"""Answers waiting requests together: one call of the network for all that arrived while the last call ran."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

from kd_jax.serving.recommender import Recommender
from kd_jax.serving.requests import Answer, Checked


class FullError(Exception):
  """More requests wait than may."""


class _Waiting(NamedTuple):
  recommender: Recommender
  request: Checked
  answer: asyncio.Future


class Batches:
  """The queue of a service. Its methods are called in one event loop; networks run in a thread of their own."""

  def __init__(self, most_together: int, most_waiting: int, observe: Callable[[int], None]):
    """`observe(n)` is called with the number of requests of every call."""
    self._together, self._most, self._observe = most_together, most_waiting, observe
    self._waiting: list[_Waiting] = []
    self._arrived = asyncio.Event()
    self._thread = futures.ThreadPoolExecutor(1)

  def __len__(self) -> int:
    return len(self._waiting)

  async def answer(self, recommender: Recommender, request: Checked) -> Answer:
    """The answer of this recommender. Raises FullError."""
    if len(self._waiting) >= self._most:
      raise FullError
    answer = asyncio.get_running_loop().create_future()
    self._waiting.append(_Waiting(recommender, request, answer))
    self._arrived.set()
    return await answer

  async def run(self) -> None:
    """Answers for ever; a task of the event loop."""
    while True:
      await self._arrived.wait()
      batch, self._waiting = self._waiting[: self._together], self._waiting[self._together :]
      if not self._waiting:
        self._arrived.clear()
      for recommender in {id(x.recommender): x.recommender for x in batch}.values():
        await self._call(recommender, [x for x in batch if x.recommender is recommender and not x.answer.done()])

  async def _call(self, recommender, own):
    if not own:  # all clients have gone
      return
    self._observe(len(own))
    try:
      answers = await asyncio.get_running_loop().run_in_executor(
          self._thread, recommender.answer, [x.request for x in own])
    except Exception as error:  # of one call: each of its clients is told, and the service goes on
      for waiting in own:
        if not waiting.answer.done():
          waiting.answer.set_exception(error)
      return
    for waiting, answer in zip(own, answers, strict=True):
      if not waiting.answer.done():
        waiting.answer.set_result(answer)
