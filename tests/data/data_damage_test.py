"""Prepared data that is damaged, exchanged or from a stranger, disks that are full, and nonsense in calls: one line."""

import itertools
import json
import os
import pathlib
import pwd
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.data import builder, sources, store
from kd_jax.data.recipe import Contexts, Log
from kd_jax.storage import sealed

SMALL, OTHER = (f"synthetic(users=60, items=50, interactions_per_user=10, seed={seed})" for seed in (0, 1))
ALL = ("train", "validation", "test")
LITTLE = 1e-4  # GB, less than the interactions need: they are streamed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  for call in (SMALL, OTHER):
    data.load(call, cache_dir=cache)
  return cache


@pytest.fixture
def cache(prepared, tmp_path):
  return pathlib.Path(shutil.copytree(prepared, tmp_path / "cache"))


def folder_of(cache, call=SMALL):
  return store.prepare(store.canonical(registry.parse("data", call, "data")), None, cache)


def features_of(folder):
  (path,) = folder.glob("*/*/*/features.json")
  return path


def reseal(folder, change=None):
  """Writes a manifest that fits the files, as a stranger would; `change` alters its content."""
  path = folder / "manifest.json"
  content = json.loads(path.read_bytes())
  for name in content["files"]:
    content["files"][name] = {"sha256": sealed.hash_file(folder / name), "bytes": (folder / name).stat().st_size}
  path.write_text(json.dumps(change(content) if change else content))
  (folder / "manifest.sha256").write_text(f"{sealed.hash_file(path)}  manifest.json\n")


def content_of(dataset):
  return [getattr(dataset, name).items.tolist() for name in ALL] + [dataset.user_ids.tolist()]


def ways_to_damage(content, other):
  """(name, damaged content, or None for no file) for the content of a file and of another one."""
  flipped = bytearray(content)
  flipped[len(content) // 2] ^= 1
  return [("flip", bytes(flipped)), ("cut", content[: len(content) // 2]), ("empty", b""), ("more", content + b"\0"),
          ("missing", None), ("swap", other)]


def test_every_damage_of_every_file_is_noticed(cache):
  folder = folder_of(cache)
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  assert len(files) == 9
  contents = {path: path.read_bytes() for path in files}
  for number, path in enumerate(files):
    for way, damaged in ways_to_damage(contents[path], contents[files[number - 1]]):
      path.unlink() if damaged is None else path.write_bytes(damaged)
      with pytest.raises(InputError, match=r"damaged prepared data: .*; delete this folder and start again"):
        pytest.fail(f"{path.name}, {way}: read {content_of(data.load(SMALL, cache_dir=cache, splits=ALL))}")
      path.write_bytes(contents[path])
  (folder / "stray.json").write_text("{}")
  with pytest.raises(InputError, match=r"stray\.json is not listed"):
    data.load(SMALL, cache_dir=cache)


def test_exchanged_folders_are_noticed(cache):
  mine, other = folder_of(cache), folder_of(cache, OTHER)
  shutil.rmtree(mine)
  shutil.copytree(other, mine)
  with pytest.raises(InputError, match=r"manifest\.json is of another folder"):
    data.load(SMALL, cache_dir=cache)
  with pytest.raises(InputError, match=r"manifest\.json is of another folder"):
    data.hashes(SMALL, cache_dir=cache)


def by_user(dataset):
  starts, folder = dataset.stream.starts["train"], dataset.stream.folders["train"]
  items = np.fromfile(folder / "items.int32", "<i4")
  return [items[a:b].tolist() for a, b in itertools.pairwise(starts)]


def test_exchanged_and_damaged_streams_are_noticed(cache):
  whole = data.load(SMALL, cache_dir=cache)
  expected = [whole.train.items[whole.train.users == u].tolist() for u in range(60)]
  streamed = data.load(SMALL, cache_dir=cache, memory=LITTLE)
  assert by_user(streamed) == expected
  train, validation = (streamed.stream.folders[name] for name in ("train", "validation"))
  shutil.rmtree(train)
  shutil.copytree(validation, train)
  assert by_user(data.load(SMALL, cache_dir=cache, memory=LITTLE)) == expected  # sorted again
  (train / "items.int32").write_bytes((train / "items.int32").read_bytes()[::-1])
  with pytest.raises(InputError, match=r"items\.int32 is "):
    data.load(SMALL, cache_dir=cache, memory=LITTLE)


def test_the_source_of_a_stream_is_verified(cache):
  path, = folder_of(cache).glob("*/*/*/*-train.array_record*")
  path.write_bytes(path.read_bytes()[::-1])
  with pytest.raises(InputError, match="split train"):
    data.load(SMALL, cache_dir=cache, memory=LITTLE, splits=("validation",))


STRANGE = {  # {name: a change of the content of features.json}
    "column": lambda x: x["featuresDict"]["features"]["users"].update(pythonClassName="strange_module.Tensor"),
    "whole": lambda x: x.update(pythonClassName="strange_module.Features"),
    "older form": lambda x: [x.pop(key) for key in list(x)] + [x.update(type="strange_module.F", content={})],
    "other name": lambda x: x.update(python_class_name=x.pop("pythonClassName").replace("tensorflow", "strange")),
}


@pytest.mark.parametrize("memory", [0.0, LITTLE])
@pytest.mark.parametrize("change", STRANGE)
def test_classes_of_strangers_are_not_imported(cache, tmp_path, monkeypatch, change, memory):
  mark = tmp_path / "imported"
  for name in ("strange_module", "strange_datasets"):
    (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  path = features_of(folder_of(cache))
  content = json.loads(path.read_text())
  STRANGE[change](content)
  path.write_text(json.dumps(content))
  reseal(folder_of(cache))
  with pytest.raises(InputError, match=r"features\.json: names 'strange_.*not imported"):
    data.load(SMALL, cache_dir=cache, memory=memory)
  assert not mark.exists() and not {"strange_module", "strange_datasets"} & sys.modules.keys()


def test_the_module_in_dataset_info_is_not_imported(cache, tmp_path, monkeypatch):
  (tmp_path / "strange_builder.py").write_text("raise SystemExit('imported')\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  path = features_of(folder_of(cache)).with_name("dataset_info.json")
  path.write_text(path.read_text().replace("kd_jax.data.builder", "strange_builder"))
  reseal(folder_of(cache))
  assert data.load(SMALL, cache_dir=cache).num_users == 60 and "strange_builder" not in sys.modules


def test_features_that_the_manifest_does_not_list(cache):
  folder = folder_of(cache)
  name = features_of(folder).relative_to(folder).as_posix()
  reseal(folder, lambda content: content | {"files": {k: v for k, v in content["files"].items() if k != name}})
  with pytest.raises(InputError, match=r"features\.json is not listed"):
    data.load(SMALL, cache_dir=cache)


def nodes(value, path=()):
  yield path
  for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
    yield from nodes(value[key], (*path, key))


def replaced(value, path, new):
  if not path:
    return new
  copy = value.copy()
  copy[path[0]] = replaced(value[path[0]], path[1:], new)
  return copy


@pytest.mark.parametrize("name", ["manifest.json", "features.json", "dataset_info.json"])
def test_nonsense_that_fits_its_manifest_is_one_line(cache, name):
  folder, expected = folder_of(cache), data.load(SMALL, cache_dir=cache, splits=ALL)
  path = folder / name if name == "manifest.json" else features_of(folder).with_name(name)
  original, content = (folder / "manifest.json").read_bytes(), json.loads(path.read_bytes())
  rng, refused = np.random.default_rng(0), 0
  for place in nodes(content):
    junk = [None, [], {}, "x", -1, 10**30, [[[]]], {"type": 5}][rng.integers(8)]
    if name == "manifest.json":
      reseal(folder, lambda found, place=place, junk=junk: replaced(found, place, junk))
    else:
      path.write_text(json.dumps(replaced(content, place, junk)))
      reseal(folder)
    try:
      assert content_of(data.load(SMALL, cache_dir=cache, splits=ALL)) == content_of(expected)
    except InputError as error:
      assert "\n" not in str(error)
      refused += 1
    store.find(SMALL, expected.hashes, cache)
    (folder / "manifest.json").write_bytes(original)
  assert refused > 10


def test_deep_nesting_in_a_description(cache):
  path = features_of(folder_of(cache))
  path.write_text("[" * 100_000)
  reseal(folder_of(cache))
  with pytest.raises(InputError, match=r"features\.json: not a description"):
    data.load(SMALL, cache_dir=cache)


def limited(kilobytes, code, *arguments):
  """The process of Python code that cannot write larger files, as if the disk were full."""
  command = f'ulimit -f {kilobytes}; exec "$0" -c "$@"'
  return subprocess.run(["bash", "-c", command, sys.executable, code, *map(str, arguments)], capture_output=True,
                        text=True, check=False, timeout=300, env=os.environ | {"PYTHONPATH": os.getcwd()})


LOAD = ("import sys\nfrom kd_jax import data\nfrom kd_jax.base import InputError\ntry:\n"
        "  print(data.load(sys.argv[1], cache_dir=sys.argv[2], memory=float(sys.argv[3])).num_users)\n"
        "except InputError as error:\n  print('InputError:', error)\n")


@pytest.mark.parametrize("kilobytes", [0, 2])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, kilobytes):
  done = limited(kilobytes, LOAD, SMALL, tmp_path, 0)
  assert done.returncode == 0 and done.stdout.startswith("InputError: ") and done.stdout.count("\n") == 1, done
  assert "File too large" in done.stdout and str(tmp_path) in done.stdout
  assert not [p for p in (tmp_path / "data").iterdir() if not p.name.endswith(".lock")]
  assert data.load(SMALL, cache_dir=tmp_path).num_users == 60


@pytest.fixture
def disk(tmp_path):
  """A disk of 200 kB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
  if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("no disk can be mounted here")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_while_sorting_a_stream(disk, tmp_path):
  call = "synthetic(users=6000, items=50, interactions_per_user=10)"
  data.load(call, cache_dir=tmp_path / "cache")
  (disk / "data").symlink_to(tmp_path / "cache" / "data")
  done = subprocess.run([sys.executable, "-c", LOAD, call, disk, "0.005"], capture_output=True, text=True, check=False,
                        env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=300)
  assert done.returncode == 0 and done.stdout.startswith("InputError: ") and "No space left" in done.stdout, done
  assert not [p for p in (disk / "streams").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_an_error_of_array_record_is_one_line(tmp_path, monkeypatch):
  def fail(*_, **__):
    raise RuntimeError("write() failed:\n No space left on device")

  monkeypatch.setattr(builder.RecommenderLog, "download_and_prepare", fail)
  with pytest.raises(InputError, match=r"`cache_dir`: cannot write .*: write\(\) failed: No space left on device$"):
    data.load(SMALL, cache_dir=tmp_path)


def test_a_home_directory_that_is_not_known(tmp_path, monkeypatch):
  def unknown(*_):
    raise KeyError

  monkeypatch.delenv("HOME")
  monkeypatch.delenv("KD_JAX_CACHE", raising=False)
  monkeypatch.setattr(pwd, "getpwuid", unknown)
  with pytest.raises(InputError, match=r"`cache_dir=~/\.cache/kd_jax`: the home directory ~ is not known"):
    data.load(SMALL)
  with pytest.raises(InputError, match="`data_dir=~/x`: the home directory"):
    data.load("movielens", data_dir="~/x", cache_dir=tmp_path)
  with pytest.raises(InputError, match=r"`data=~nobody_here/log\.csv`: the home directory"):
    data.load("interactions(path='~nobody_here/log.csv')", cache_dir=tmp_path)


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
  path = tmp_path / "log.csv"
  path.write_text("user,item\n" + "".join(f"u{u},i{i}\n" for u in range(20) for i in range(u % 3, 10 + u % 3)))
  find = sources.find

  def find_and_change(*arguments):
    path.write_text(path.read_text() + "u0,i11\n")
    return find(*arguments)

  monkeypatch.setattr(sources, "find", find_and_change)
  with pytest.raises(InputError, match=r"log\.csv: changed while it was read"):
    data.load(f"interactions(path={str(path)!r})", cache_dir=tmp_path / "cache")
  monkeypatch.setattr(sources, "find", find)
  assert data.load(f"interactions(path={str(path)!r})", cache_dir=tmp_path / "cache").num_users == 20


@pytest.mark.parametrize("call", [
    "synthetic(seed='a')", "synthetic(users=True)", "synthetic(popularity='a')", "synthetic(users=10**12)",
    "synthetic(users=100000000, items=100000000, dim=65536)", "numpy.array(object=1)", "os.getcwd()", "nowhere.at()",
    ".".join(["a"] * 500), "synthetic(\nseed=\n'a')", "synthetic(ratios=" + "[" * 300 + "]" * 300 + ")",
    "(" * 5000, "synthetic(seed=" + "9" * 400 + ")", "interactions(path='a\\nb')", "interactions(path='a\\0b')",
    "interactions(path=5)", f"interactions(path='{'x' * 400}')", "labelled(path='x', labels='y', fields=('a',))",
    "labelled(path='x', fields=5)", "frappe(folds='a')", "movielens(min_rating='a')", "movielens(min_rating=1e999)",
    "movielens_ctr(min_rating=None)", "gowalla(validation_ratio='a')", "gowalla(validation_ratio=1)", ""])
def test_nonsense_in_a_call(tmp_path, call):
  with pytest.raises(InputError) as error:
    data.load(call, cache_dir=tmp_path)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "data").exists() or not list((tmp_path / "data").glob("[!.]*"))


def tiny(labelled):
  users = np.repeat(np.arange(30), 6)
  log = Log(users, np.arange(180) % 20, [f"u{n}" for n in range(30)], [f"i{n}" for n in range(20)],
            np.ones(180, np.float32) * 5, np.arange(180))
  return log._replace(contexts=Contexts(np.arange(30), np.arange(30, dtype=np.int8) % 3)) if labelled else log


@pytest.mark.parametrize("name", registry.names("data"))
def test_any_value_of_any_argument_is_an_input_error_or_valid(name):
  signature = registry.signature("data", name)
  needed = {"path": "x.csv"} if "path" in signature else {}
  needed |= {"fields": ("a",)} if "fields" in signature else {}
  for argument in signature:
    for value in ("a", "", None, True, -1, 0, 1.5, 10**20, float("nan"), float("inf"), (), ("a", 1), (0.5, 0.5, 0.0)):
      try:
        recipe = registry.build("data", registry.Call(name, tuple((needed | {argument: value}).items())))
        store.process(recipe, tiny(name in ("labelled", "frappe") or name.endswith(("_tags", "_ctr"))))
      except InputError as error:
        assert "\n" not in str(error), (argument, value)


def test_a_cache_that_is_a_file(tmp_path):
  (tmp_path / "file").write_text("")
  for call in (SMALL, "movielens"):
    with pytest.raises(InputError, match=r"`cache_dir`|no copy of"):
      data.load(call, cache_dir=tmp_path / "file")
  data.load(SMALL, cache_dir=tmp_path / "cache")
  (tmp_path / "cache" / "streams").write_text("")
  with pytest.raises(InputError, match="`cache_dir`: cannot write"):
    data.load(SMALL, cache_dir=tmp_path / "cache", memory=LITTLE)
