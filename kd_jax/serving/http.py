"""The HTTP interface of a service: paths, limits, and errors with a reason."""

import asyncio
import contextlib
import hmac
import pathlib
import time
from typing import Annotated, Any, NamedTuple

import fastapi
import pydantic
from fastapi import responses
from fastapi.exceptions import RequestValidationError

from kd_jax import __version__
from kd_jax.base import InputError, one_line
from kd_jax.serving import measures, new_items
from kd_jax.serving.batching import Batches, FullError
from kd_jax.serving.live import TEACHER, Live
from kd_jax.serving.requests import Request

_OPEN = ("/", "/health")  # without a token: the page asks for it, and a supervisor has none
_MOST_ID, _MOST_HISTORY, _MOST_FOUND, _MOST_NEW, _MOST_FEATURES = 1000, 10_000, 50, 100, 1000
_PAGE = pathlib.Path(__file__).with_name("page.html")
_Id = pydantic.StrictInt | Annotated[pydantic.StrictStr, pydantic.Field(max_length=_MOST_ID)]
_Ids = Annotated[list[_Id], pydantic.Field(max_length=_MOST_HISTORY)]
_K = Annotated[int, fastapi.Query(ge=1, description="length of the list")]
_Text = Annotated[str, fastapi.Query(max_length=_MOST_ID)]
_Name = Annotated[str | None, fastapi.Query(max_length=_MOST_ID, description="a, b or teacher; default: by the user")]


class Settings(NamedTuple):
  """The limits of a service."""

  token: str = ""  # "": none is asked for
  most_k: int = 1000
  most_bytes: int = 1_000_000  # of a body
  most_waiting: int = 1000
  most_together: int = 256
  reload_seconds: float = 2.0  # between looks at the directories; 0: exports are never replaced


class NewItems(pydantic.BaseModel):
  """Items that the export does not have; /health says which features they need."""

  model_config = pydantic.ConfigDict(extra="forbid")
  ids: Annotated[list[_Id], pydantic.Field(min_length=1, max_length=_MOST_NEW)]
  vectors: Annotated[dict[str, list[list[pydantic.StrictInt | pydantic.StrictFloat]]],
                     pydantic.Field(max_length=_MOST_FEATURES)] = {}
  categories: Annotated[dict[str, list[pydantic.StrictInt]], pydantic.Field(max_length=_MOST_FEATURES)] = {}


class Ask(pydantic.BaseModel):
  """The body of POST /recommend."""

  model_config = pydantic.ConfigDict(extra="forbid")
  user: _Id | None = None
  history: _Ids = []
  exclude: _Ids = []
  candidates: _Ids | None = None
  new_items: NewItems | None = None
  k: pydantic.StrictInt = pydantic.Field(10, ge=1)
  model: Annotated[str, pydantic.Field(max_length=_MOST_ID)] | None = None


class Item(pydantic.BaseModel):
  """A recommended item."""

  id: str
  score: float
  title: str | None


class Reply(pydantic.BaseModel):
  """An answer: the items, and which export they come from."""

  items: list[Item]
  source: str
  model: str
  export: str
  ms: float


def app(live: Live, settings: Settings) -> fastapi.FastAPI:
  """The application, for an ASGI server."""
  counted = measures.Measures()
  batches = Batches(settings.most_together, settings.most_waiting, counted.together.observe)

  @contextlib.asynccontextmanager
  async def lifespan(_):
    for name in live.names():
      _describe(counted, live[name])
    tasks = [asyncio.create_task(batches.run())]
    if settings.reload_seconds:
      tasks.append(asyncio.create_task(_watch(live, counted, settings.reload_seconds)))
    yield
    for task in tasks:
      task.cancel()

  made = fastapi.FastAPI(title="kd_jax", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                         responses={status: {"description": text} for status, text in (
                             (401, "no token"), (413, "the body is too large"), (422, "a field is wrong"),
                             (429, "too many requests wait"))})
  made.add_middleware(_Edge, settings=settings, counted=counted)
  _errors(made)
  _recommending(made, live, batches, counted, settings)
  _browsing(made, live, settings)
  _watching(made, live, batches, counted)
  return made


def _errors(made):
  @made.exception_handler(RequestValidationError)
  async def wrong(_, error):
    reasons = [f"{'.'.join(map(str, x['loc']))}: {x['msg']}" for x in error.errors()[:3]]
    return _refused(422, one_line("; ".join(reasons), 500))

  @made.exception_handler(InputError)
  async def refused(_, error):
    return _refused(422, one_line(error, 500))

  @made.exception_handler(FullError)
  async def full(_, error):
    return responses.JSONResponse({"detail": "too many requests wait"}, 429, {"Retry-After": "1"})


def _refused(status, reason):
  return responses.JSONResponse({"detail": reason.encode("utf-8", "replace").decode()}, status)


def _recommending(made, live, batches, counted, settings):
  async def reply(http, loaded, answer, start, user, k):
    titles = loaded.recommender.contents.titles
    counted.answers.labels(loaded.name, answer.source).inc()
    http.state.said = {"model": loaded.name, "export": loaded.export, "source": answer.source, "k": k,
                       "user": measures.pseudonym(user)}
    return Reply(items=[Item(id=item, score=score, title=titles.get(item)) for item, score in zip(
        answer.items, answer.scores, strict=True)], source=answer.source, model=loaded.name, export=loaded.export,
        ms=round(1e3 * (time.perf_counter() - start), 3))

  async def recommend(http, name, request, new=None):
    start = time.perf_counter()
    _check_k(request.k, settings)
    loaded = live.of_user(request.user) if name is None else live[name]
    recommender = loaded.recommender if new is None else await asyncio.to_thread(
        new_items.add, loaded.recommender, [str(x) for x in new.ids], new.vectors, new.categories)
    answer = await batches.answer(recommender, recommender.check(request))
    return await reply(http, loaded, answer, start, request.user, request.k)

  @made.get("/recommend")
  async def for_a_user(http: fastapi.Request, user: _Text, k: _K = 10, model: _Name = None) -> Reply:
    """Recommends items to a user."""
    return await recommend(http, model, Request(user, k=k))

  @made.post("/recommend")
  async def for_a_history(http: fastapi.Request, ask: Ask) -> Reply:
    """Recommends items to a user or for a history, without excluded items, among candidates, and among new items."""
    return await recommend(http, ask.model, Request(ask.user, ask.history, ask.exclude, ask.candidates, ask.k),
                           ask.new_items)

  @made.get("/similar")
  async def similar(http: fastapi.Request, item: _Text, k: _K = 10, model: _Name = None) -> Reply:
    """The items that are most similar to an item."""
    start = time.perf_counter()
    _check_k(k, settings)
    loaded = live.of_user(None) if model is None else live[model]
    answer = await asyncio.to_thread(loaded.recommender.similar, item, k)
    return await reply(http, loaded, answer, start, None, k)


def _check_k(k, settings):
  if k > settings.most_k:
    raise InputError(f"`k={one_line(k, 30)}`: at most {settings.most_k}")


def _browsing(made, live, settings):
  @made.get("/", include_in_schema=False)
  async def page():
    return responses.FileResponse(_PAGE, media_type="text/html", headers={
        "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"})

  @made.get("/items")
  async def items(q: _Text = "", model: _Name = None) -> list[dict[str, str]]:
    """Items whose id or title contains the text."""
    contents = (live.of_user(None) if model is None else live[model]).recommender.contents
    return await asyncio.to_thread(_found, contents.item_ids, contents.titles, q)

  @made.get("/users")
  async def users(q: _Text = "", model: _Name = None) -> list[dict[str, str]]:
    """Users whose id contains the text."""
    contents = (live.of_user(None) if model is None else live[model]).recommender.contents
    return await asyncio.to_thread(_found, contents.user_ids, {}, q)


def _found(ids, titles, text) -> list[dict[str, str]]:
  """At most `_MOST_FOUND` of them; those that begin with the text come first."""
  text = text.casefold()
  places = [(titles.get(x, x), x) for x in ids if text in x.casefold() or text in titles.get(x, "").casefold()]
  places.sort(key=lambda each: not (each[0].casefold().startswith(text) or each[1].casefold() == text))
  return [{"id": x, "title": title} for title, x in places[:_MOST_FOUND]]


def _watching(made, live, batches, counted):
  @made.get("/health")
  async def health() -> dict[str, Any]:
    """Which exports answer."""
    models = {name: live[name] for name in live.names()}
    return {"status": "ok", "models": {name: {
        "model": x.recommender.metadata["model"], "export": x.export, "users": len(x.recommender.contents.user_ids),
        "items": len(x.recommender.contents.item_ids), "new_items": _needed(x.recommender)}
        for name, x in models.items()}, "teacher": TEACHER in models}

  @made.get("/metrics", response_class=responses.PlainTextResponse)
  async def metrics():
    """Counters in the format of Prometheus."""
    counted.waiting.set(len(batches))
    return responses.Response(counted.text(), media_type="text/plain; version=0.0.4")


def _needed(recommender) -> dict[str, dict[str, int]] | None:
  """{"vectors": {name: width}, "categories": {field: number of codes}} of a new item; None: there can be none."""
  about = recommender.metadata.get("tower")
  return about and {"vectors": about["vectors"], "categories": about["fields"]}


async def _watch(live, counted, seconds):
  """Replaces exports whose directories hold others. One that is refused is tried again when it changes."""
  refused = {}
  while True:
    await asyncio.sleep(seconds)
    for name in live.names():
      if live.is_replaced(name) and refused.get(name) != (seal := live.seal_of(name)):
        try:
          _describe(counted, await asyncio.to_thread(live.replace, name))
          counted.replaced.labels(name).inc()
        except InputError as error:
          refused[name] = seal
          counted.refused.labels(name).inc()
          measures.log(event="refused", model=name, reason=str(error))


def _describe(counted, loaded):
  metadata = loaded.recommender.metadata
  counted.export.labels(loaded.name).info({"network": metadata["model"], "export": loaded.export})
  measures.log(event="loaded", model=loaded.name, export=loaded.export, network=metadata["model"])


class _Edge:
  """Around the application: refuses bodies that are too large and requests without the token, counts and logs."""

  def __init__(self, app, settings: Settings, counted: measures.Measures):
    self.app, self.settings, self.counted = app, settings, counted

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      return await self.app(scope, receive, send)
    start, status, state = time.perf_counter(), [500], scope.setdefault("state", {})

    async def sent(message):
      if message["type"] == "http.response.start":
        status[0] = message["status"]
      await send(message)

    try:
      await self._pass(scope, receive, sent)
    finally:
      known = scope.get("route")
      path, seconds = known.path if known else "other", time.perf_counter() - start
      self.counted.requests.labels(path, str(status[0])).inc()
      self.counted.seconds.labels(path).observe(seconds)
      measures.log(event="request", path=path, status=status[0], ms=round(1e3 * seconds, 3),
                   **dict(state).get("said", {}))

  async def _pass(self, scope, receive, send):
    if self.settings.token and scope["path"] not in _OPEN and not self._knows_token(scope):
      return await _refused(401, "the header `Authorization: Bearer TOKEN` is needed")(scope, receive, send)
    has_body = more = scope["method"] in ("POST", "PUT", "PATCH")
    body = b""
    while more:
      message = await receive()
      if message["type"] != "http.request":  # the client has gone
        return None
      body, more = body + message.get("body", b""), message.get("more_body", False)
      if len(body) > self.settings.most_bytes:
        return await _refused(413, f"the body is larger than {self.settings.most_bytes:,} bytes")(scope, receive, send)
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed():
      return next(given, None) or await receive()

    return await self.app(scope, replayed if has_body else receive, send)

  def _knows_token(self, scope) -> bool:
    given = dict(scope["headers"]).get(b"authorization", b"")
    return hmac.compare_digest(given, b"Bearer " + self.settings.token.encode())
