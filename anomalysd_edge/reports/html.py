"""What every HTML report shares: the page with its style sheet, and tables. Light and dark by the reader's setting."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from anomalysd_edge.errors import InputError

HEAD = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>"""

STYLE = """
:root{--page:#f5f6f8;--card:#fff;--ink:#1a1d23;--quiet:#5b6472;--line:#d9dde4;--alarm:#b3261e;--pass:#1b6e3c;--wrong:#8a4b00;--unsure:#6b5200}
@media(prefers-color-scheme:dark){
:root{--page:#14161a;--card:#1e2127;--ink:#e8eaee;--quiet:#a0a8b5;--line:#343943;--alarm:#ff8a80;--pass:#7bd49a;--wrong:#ffb95c;--unsure:#f0d060}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
header,main{max-width:1080px;margin:0 auto;padding:0 16px}
h1{font-size:1.7rem;margin:28px 0 12px}
h2{font-size:1.2rem;margin:34px 0 6px}
h2 small{color:var(--quiet);font-weight:400}
h3{font-size:1rem;margin:0;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:10px;list-style:none;margin:0;padding:0}
.tiles li{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 14px;color:var(--quiet)}
.tiles b{color:var(--ink);font-size:1.35rem;margin-right:4px}
dl{display:flex;flex-wrap:wrap;gap:4px 24px;margin:14px 0 0}
dl div{display:flex;gap:6px}dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;background:var(--card);border:1px solid var(--line);font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
.mean th,.mean td{font-weight:700;border-top:2px solid var(--quiet)}
.meaning,.note{color:var(--quiet);margin:0 0 10px}
article{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--pass);border-radius:8px;
padding:12px 14px;margin:0 0 14px}
article.alarm{border-left-color:var(--alarm)}article.wrong{border-left-color:var(--wrong)}
article.uncertain{border-left-style:dashed}.unsure{font-weight:700;color:var(--unsure)}
.line{display:flex;flex-wrap:wrap;align-items:center;gap:4px 14px;margin:4px 0 10px;color:var(--quiet)}
.verdict{font-weight:700;color:var(--pass)}.alarm .verdict{color:var(--alarm)}.wrong .verdict{color:var(--wrong)}
.score{font-variant-numeric:tabular-nums;margin-left:auto}
.meter{position:relative;flex:0 0 120px;height:8px;border-radius:4px;background:var(--line);overflow:hidden}
.meter i{position:absolute;inset:0 auto 0 0;background:var(--pass)}.alarm .meter i{background:var(--alarm)}
.wrong .meter i{background:var(--wrong)}
.meter::after{content:"";position:absolute;left:50%;top:0;bottom:0;width:2px;background:var(--ink)}
.pictures{display:grid;grid-template-columns:repeat(4,1fr);gap:10px}
figure{margin:0}img{display:block;width:100%;height:auto;border-radius:4px;background:var(--line)}
figcaption{color:var(--quiet);font-size:.85rem;margin-top:3px}.note{margin:8px 0 0}
@media(max-width:640px){.pictures{grid-template-columns:1fr 1fr}.score{margin-left:0}
h1{font-size:1.35rem}th,td{padding:5px 8px}}
@media print{article{break-inside:avoid}}
"""


def page(title: str, parts: Iterable[str], header: str = "") -> str:
    """A whole page: the title as heading, `header` (HTML) under it, then `parts` (HTML). It loads nothing and runs no
    script."""
    head = HEAD.format(title=html.escape(title), style=STYLE)
    body = "\n".join(parts)
    return f"{head}<header><h1>{html.escape(title)}</h1>{header}</header><main>\n{body}\n</main></html>\n"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values side by side, for a page's header."""
    found = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl>{''.join(found)}</dl>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str | int | float | None]], described_by: str = "") -> str:
    """A table; floats are shown with three decimals, None and NaN as a dash, a row that starts with "mean" stands out.

    `described_by` is the id of the element that says what the figures are. Raises InputError where a row does not fit.
    """
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in columns)
    body = []
    for first, *rest in rows:
        if len(rest) + 1 != len(columns):
            raise InputError(f"a table row has {len(rest) + 1} cells under {len(columns)} headings: {[first, *rest]}")
        mean = " class=mean" if str(first).lower() == "mean" else ""
        cells = "".join(f"<td>{_cell(value)}</td>" for value in rest)
        body.append(f"<tr{mean}><th scope=row>{_cell(first)}</th>{cells}</tr>")
    described = f" aria-describedby={described_by}" if described_by else ""
    inner = f"<table{described}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class=wide tabindex=0>{inner}</div>"


def _cell(value: str | int | float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))
