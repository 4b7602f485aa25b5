"""The order of what has none: of equal scores, and of the rows of a user's own file. It depends on ids alone.

An order by index, or by row, would say something of the test split: what is popular there often comes early.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator

import numpy as np

from kd_jax.data.recipe import Log

_PART = 1 << 20  # rows, see `slices`
_KNOWN: dict[int, np.ndarray] = {}  # the priorities of arrays of ids that are in memory, by the array's id()


def priority(ids: np.ndarray) -> np.ndarray:
  """The rank [I] int32 of each of `ids` [I] in the order of a hash: a fixed permutation that looks random.

  Of entities with equal values, such as items with equal scores, the one with the lower priority comes first. The hash
  is BLAKE2b of the id's UTF-8 text. Ids with equal hashes are in the order of their texts. `ids` must not change later.
  """
  ids = np.asarray(ids)
  if id(ids) not in _KNOWN:
    _KNOWN[id(ids)] = _ranks(ids)
    weakref.finalize(ids, _KNOWN.pop, id(ids), None)
  return _KNOWN[id(ids)]


def inverse(permutation: np.ndarray) -> np.ndarray:
  """The inverse [I] of a permutation [I]; of priorities: the items in their order."""
  places = np.empty_like(permutation)
  places[permutation] = np.arange(len(permutation), dtype=permutation.dtype)
  return places


def unordered(log: Log) -> Log:
  """The same rows sorted by hash of the user's id, then of (user, item), then by time, rating and part.

  In an order by the items' hashes, splits of rows with equal times would hold out the same items for all users.
  """
  users, items = (priority(np.array(ids, object))[codes] for ids, codes in (
      (log.user_ids, log.users), (log.item_ids, log.items)))
  rest = [column for column in (log.parts, log.ratings, log.timestamps) if column is not None]
  # One sort of keys that begin with the user and with the upper bits of the hash of (user, item), and end with the row:
  # to sort numbers takes a seventh of the time of `argsort`. Then another sort, of the few rows that are equal.
  bits, low = (np.uint64(max(0, count - 1).bit_length()) for count in (len(log.user_ids), len(users)))
  keys = np.empty(len(users), np.uint64)
  for part in slices(len(keys)):
    hashes = _hashes_of(users[part], items[part]) >> bits >> low << low
    keys[part] = users[part].astype(np.uint64) << np.uint64(64) - bits | hashes
    keys[part] |= np.arange(part.start, part.stop, dtype=np.uint64)
  keys.sort()
  places = _neighbours(keys, low)
  keys &= (np.uint64(1) << low) - np.uint64(1)
  rows = keys.view(np.int64)
  tied = rows[places]
  hashes = _hashes_of(users[tied], items[tied])
  rows[places] = tied[np.lexsort((*(column[tied] for column in rest), items[tied], hashes, users[tied]))]
  del users, items
  columns = {name: getattr(log, name) for name in ("users", "items", "ratings", "timestamps", "parts")}
  return log._replace(unordered=True, **{name: None if x is None else x[rows] for name, x in columns.items()})


def _neighbours(keys, low) -> np.ndarray:
  """The places where a sorted key equals that before or after it, without the `low` last bits."""
  equal = np.zeros(len(keys) + 1, bool)
  for part in slices(max(0, len(keys) - 1)):
    begins = keys[part.start : part.stop + 1] >> low
    equal[part.start + 1 : part.stop + 1] = begins[1:] == begins[:-1]
  return np.flatnonzero(equal[1:] | equal[:-1])


def stable(keys: np.ndarray) -> np.ndarray:
  """The stable order [N] of integers: `np.argsort(keys, kind="stable")`, in less time."""
  rows = np.argsort(keys)
  places = _tied(keys, rows)
  tied = rows[places]
  rows[places] = tied[np.lexsort((tied, keys[tied]))]
  return rows


def slices(count: int) -> Iterator[slice]:
  """The rows 0..count - 1 in parts, so that what is computed of them needs little memory at a time."""
  return (slice(start, min(count, start + _PART)) for start in range(0, count, _PART))


def _tied(keys, rows) -> np.ndarray:
  """The places in the order `rows` where a key equals that of a neighbour."""
  equal = np.zeros(len(rows) + 1, bool)
  for part in slices(max(0, len(rows) - 1)):
    ascending = keys[rows[part.start : part.stop + 1]]
    equal[part.start + 1 : part.stop + 1] = ascending[1:] == ascending[:-1]
  return np.flatnonzero(equal[1:] | equal[:-1])


def _hashes_of(users, items) -> np.ndarray:
  return _mixed(users.astype(np.uint64) << np.uint64(32) | items.astype(np.uint64))


def _mixed(values: np.ndarray) -> np.ndarray:
  """A one-to-one hash of uint64: SplitMix64, Steele, Lea, Flood, OOPSLA 2014."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return values ^ values >> np.uint64(31)


def _ranks(ids) -> np.ndarray:
  texts = [str(x) for x in ids.tolist()]
  hashes = np.frombuffer(b"".join(map(_hash, texts)), ">u8")
  order = np.argsort(hashes, kind="stable")
  if (hashes[order[1:]] == hashes[order[:-1]]).any():
    order = np.lexsort((np.array(texts), hashes))
  return inverse(order.astype(np.int32))


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
