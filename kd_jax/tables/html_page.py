"""A table, or a comparison of runs, as one HTML file: no script, no network, every figure beside its numbers."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from kd_jax.tables import figures, page, verdict


class Lists(NamedTuple):
  """The lists of one user by several models."""

  user: str
  known: list[str]  # titles of some training items
  listed: dict[str, list[tuple[str, bool]]]  # {row: [(title, whether it is a held-out item)]}


class Origin(NamedTuple):
  """Where the numbers of a row come from."""

  row: str
  command: str
  seals: list[str]


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #767676; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
thead th { background: #f0f0f0; }
.scroll { overflow-x: auto; } .scroll:focus { outline: 2px solid #0072B2; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; min-width: 38rem; height: auto; }
figcaption { font-weight: 600; }
details { margin: .5rem 0; } summary { cursor: pointer; }
code { overflow-wrap: anywhere; background: #f5f5f5; }
.verdict { background: #eef5fa; border-left: .3rem solid #0072B2; padding: .5rem 1rem; }
"""


def write(title: str, about: str, result: dict[str, Any], curves: figures.Curves, origins: list[Origin],
          lists: Sequence[Lists]) -> str:
  """The page. `result` is a table's JSON, see `make.reproduce`, or that of `of_runs.result`."""
  parts = [f"<h1>{_text(title)}</h1>"]
  if result["synthetic"]:
    parts.append("<p><strong>SYNTHETIC DATA: says nothing about people.</strong></p>")
  parts += ['<div class="verdict">', *(f"<p>{_text(x)}</p>" for x in verdict.sentences(result)), "</div>",
            f"<p>{_text(' '.join(about.split()))}</p>", f"<p>{_text(_protocol(result))}</p>",
            "<h2>Results</h2>", _results(result), *_costs(result), *_agreement(result), *_membership(result),
            "<h2>Figures</h2>"]
  for number, panel in enumerate(figures.panels(result, curves)):
    parts += _figure(number, panel)
  parts += _groups(result) + _of_users(lists) + _origins(origins)
  return "\n".join(["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
                    '<meta name="viewport" content="width=device-width, initial-scale=1">',
                    f"<title>{_text(title)}</title>", f"<style>{_STYLE}</style>", "</head>", "<body>", "<main>", *parts,
                    "</main>", "</body>", "</html>", ""])


def _text(x) -> str:
  return html.escape(str(x))


def _protocol(result) -> str:
  several = f"{result['seeds']} seeds, mean ± standard deviation over seeds" if result["seeds"] > 1 else (
      "95 % intervals over users" if "interval" in next(iter(result["rows"][0]["metrics"].values())) else "One seed")
  return (f"{several}; {result['candidates']} as candidates; {result['users']:,} {result['evaluated']}. "
          f"Data: {result['data']}.")


def _table(caption: str, head: list[str], rows: list[list[Any]]) -> str:
  """A table whose first column names the rows. Numbers are written with four digits, or as counts."""
  lines = ["<tr>" + "".join([f'<th scope="row">{_text(row[0])}</th>', *(_cell(x) for x in row[1:])]) + "</tr>"
           for row in rows]
  heads = "".join(f'<th scope="col">{_text(x)}</th>' for x in head)
  return _scrolled(caption, heads, lines)


def _scrolled(caption, heads, lines) -> str:
  """A table from its heads and lines; on narrow screens it scrolls, also by keyboard."""
  return (f'<div class="scroll" tabindex="0" role="group" aria-label="{_text(caption)}"><table>'
          f"<caption>{_text(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
          "</div>")


def _cell(x) -> str:
  if x is None:
    return "<td></td>"
  if isinstance(x, int | float):
    shown = "no value" if x != x else f"{x:,.0f}" if isinstance(x, int) or abs(x) >= 1000 else f"{x:.4f}"
    return f'<td class="number">{shown}</td>'
  return f"<td>{_text(x)}</td>"


def _mean(summary) -> str:
  """The mean with its interval over users, or its standard deviation over seeds."""
  if summary["mean"] != summary["mean"]:
    return "no value"
  if "interval" in summary:
    return f"{summary['mean']:.4f} [{summary['interval'][0]:.4f}, {summary['interval'][1]:.4f}]"
  published = f" (published {summary['published']:.4f})" if "published" in summary else ""
  return f"{summary['mean']:.4f}" + ("" if summary["std"] is None else f" ± {summary['std']:.4f}") + published


def _results(result) -> str:
  names = list(result["rows"][0]["metrics"])
  rows = [[row["row"], row["model"], row["parameters"], row["bytes"], *(_mean(row["metrics"][m]) for m in names)]
          for row in result["rows"]]
  return _table("Quality of every row", ["row", "model", "parameters", "bytes", *names], rows)


def _costs(result) -> list[str]:
  if not any(row.get("cost") for row in result["rows"]):
    return []
  rows = [[row["row"], *(page.amount(row["cost"][name]["mean"] / unit) if name in row["cost"] else None
                         for name, (_, unit) in page.COSTS.items())] for row in result["rows"]]
  return ["<h2>Cost</h2>", _table("Bytes, operations and latency of a request, and training time",
                                  ["row", *(name for name, _ in page.COSTS.values())], rows),
          f"<p>{_text(page.COST_NOTE)}</p>"]


def _measured(result, kind, heading, caption, *notes) -> list[str]:
  """The measurements `kind` of the rows that have them."""
  rows = [row for row in result["rows"] if row.get(kind)]
  names = list(rows[0][kind]) if rows else []
  return rows and [f"<h2>{heading}</h2>", _table(caption, ["row", *names], [
      [row["row"], *(_mean(row[kind][name]) for name in names)] for row in rows]), *notes]


def _agreement(result) -> list[str]:
  return _measured(result, "agreement", "Agreement with the teacher", "How far the lists agree")


def _membership(result) -> list[str]:
  return _measured(result, "membership", "Membership inference",
                   "Attacks: area under the curve, and true positives at 1 % of false ones",
                   f"<p>{_text(page.MEMBERSHIP_NOTE)}</p>")


def _figure(number, panel: figures.Panel) -> list[str]:
  name = f"figure{number}"
  drawing = figures.svg(panel)
  drawing = drawing[drawing.index("<svg"):]
  drawing = re.sub(r'\b(id="|url\(#|xlink:href="#|href="#)', rf"\1{name}-", drawing)  # ids are unique in the page
  drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{_text(panel.title)}; its numbers follow" ', 1)
  drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
  head, *rows = panel.numbers
  title = _text(panel.title)
  return ["<figure>", f"<figcaption>{title}</figcaption>",
          f'<div class="scroll" tabindex="0" role="group" aria-label="Figure: {title}">', drawing, "</div>",
          "</figure>", "<details>", f"<summary>Numbers of this figure: {title}</summary>",
          _table(panel.title, head, rows), "</details>"]


def _groups(result) -> list[str]:
  names = list(dict.fromkeys(name for row in result["rows"] for name in row["groups"]))
  if not names:
    return []
  rows = [[row["row"], *(_mean(row["groups"][n]) if n in row["groups"] else None for n in names)]
          for row in result["rows"]]
  return ["<h2>Groups of items and users</h2>", _table("Recall in groups", ["row", *names], rows)]


def _of_users(lists) -> list[str]:
  parts = ["<h2>Lists of a few users</h2>", "<p>✓ is a held-out item of the user.</p>"] if lists else []
  for one in lists:
    longest = max(len(x) for x in one.listed.values())
    rows = [[str(place + 1), *(f"{x[place][0]}{' ✓' * x[place][1]}" if place < len(x) else None
                               for x in one.listed.values())] for place in range(longest)]
    parts += [f"<h3>User {_text(one.user)}</h3>", f"<p>Chose before, among others: {_text('; '.join(one.known))}.</p>",
              _table(f"Lists of user {one.user}", ["place", *one.listed], rows)]
  return parts


def _origins(origins) -> list[str]:
  rows = [f'<tr><th scope="row">{_text(x.row)}</th><td><code>{_text(x.command)}</code></td>'
          f"<td>{' '.join(f'<code>{_text(seal[:16])}</code>' for seal in x.seals)}</td></tr>" for x in origins]
  heads = "".join(f'<th scope="col">{x}</th>' for x in ("row", "command", "seals"))
  return ["<h2>Where the numbers come from</h2>",
          _scrolled("Commands, and the first characters of the seals (sha256) of the runs", heads, rows)]
