"""The run as one HTML file, with its tables and pictures inside: nothing is loaded from anywhere.

Test: pytest tests/bench/test_report.py
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment

from sideplug.bench.report.tables import circumstances, tables, wins

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>sideplug bench: {{ result.model }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .82rem; white-space: nowrap }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd } th { background: #f4f6f5 }
td:first-child, th:first-child { text-align: left } tr:hover td { background: #f8faf9 }
.note, footer { color: #666; font-size: .82rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem }
figure { margin: 0; align-self: center }
svg { width: 100%; height: auto } .wins { background: #fdf6e7; border-left: 4px solid #e08214; padding: .6rem 1rem }
</style></head><body>
<h1>sideplug bench</h1>
<p class="note">{{ result.model }} · {{ result.date }} · {{ result.scale.name }} run ·
{{ result.machine.cores }} cores of {{ result.machine.cpu }}</p>
<div class="wins">{{ wins[0] }}{% if wins|length > 2 %}
<ul>{% for line in wins[2:] %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}</div>
<div class="pictures">
{% for name, svg in pictures.items() %}<figure id="{{ name }}">{{ svg|safe }}</figure>{% endfor %}
</div>
{% for table in tables %}<h2>{{ table.title }}</h2>
<div class="scroll"><table><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>
<p class="note">{{ table.note }}</p>{% endfor %}
<h2>Settings</h2><ul>{% for system in result.systems.values() %}<li><b>{{ system.label }}</b>: {{ system.how }}.</li>
{% endfor %}{% for name, why in result.absent.items() %}<li>{{ name }} is not here: {{ why }}.</li>{% endfor %}</ul>
<footer>{{ footer }}<br>sideplug {{ result.machine.sideplug }}: a frozen LLM in the cloud, a person's side plugin on the
device. Run it yourself: <code>pip install 'sideplug[bench]' &amp;&amp; sideplug bench</code></footer>
</body></html>
"""


def page(result: dict[str, Any], pictures: dict[str, str]) -> str:
    """Return the page of a result and its pictures (name → SVG)."""
    shown = {name: re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL) for name, svg in pictures.items()}
    # Several SVGs in one page must not share ids.
    shown = {name: re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg) for name, svg in shown.items()}
    plain = [line.removeprefix("- ").replace("**", "") for line in wins(result)]
    template = Environment(autoescape=True).from_string(TEMPLATE)
    shown_tables = list(tables(result))
    return template.render(result=result, wins=plain, tables=shown_tables, pictures=shown, footer=circumstances(result))
