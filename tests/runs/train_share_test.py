"""Training on a share of the interactions: a teacher of fewer data, on the data of its students."""

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.runs import loop, setup


def test_only_users_of_the_share_are_trained(flags, small):
  options = flags(*small, "--train_share=0.01", "--epochs=1", "--loss=softmax", "--seed=5")
  plan = setup.prepare(options).planner
  ready = setup.prepare(options)
  batch = plan(ready.dataset)(1)
  users = set(ready.dataset.train.users[batch["rows"][batch["weight"] > 0]].tolist())
  assert len(users) == round(0.01 * len(ready.dataset.train.users))
  start = loop.fit(options=flags(*small, "--epochs=1", "--seed=5", "--learning_rate=1e-30")).params["user"]
  after = loop.fit(options=options).params["user"]
  moved = np.flatnonzero(np.abs(np.asarray(start) - np.asarray(after)).max(axis=1) > 1e-6)
  assert set(moved.tolist()) == users


def test_it_is_refused_where_it_has_no_meaning(flags, small):
  with pytest.raises(InputError, match=r"`train_share=0\.5`: neither for models of sequences"):
    setup.prepare(flags(*small, "--model=sasrec(dim=4, length=8, blocks=1)", "--train_share=0.5"))
  with pytest.raises(InputError, match="`train_share=0"):
    flags("--train_share=0")
