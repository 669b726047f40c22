"""The style sheet of `Page`: like a typeset supplement, on screens large and small and on paper."""

from __future__ import annotations

STYLE = """
:root {
  --paper: #fcfcfa; --ink: #1f2328; --soft: #5b636d; --rule: #d9dce0; --tint: #f1f3f5;
  --link: #0b5394; --plot: #ffffff;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16191d; --ink: #e3e6ea; --soft: #a2abb5; --rule: #363c44; --tint: #20252b;
    --link: #8ab8f0; --plot: #ffffff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 3rem; max-width: 54rem;
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 var(--serif);
}
header { border-bottom: 2px solid var(--ink); padding-bottom: 1rem; margin-bottom: 1.5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; text-wrap: balance; }
.subtitle { margin: 0.5rem 0 0; color: var(--soft); font-size: 1.125rem; line-height: 1.45; }
h2 {
  font-size: 1.375rem; line-height: 1.3; margin: 2.75rem 0 0.75rem;
  padding-bottom: 0.25rem; border-bottom: 1px solid var(--rule);
}
h3 { font-size: 1.125rem; line-height: 1.35; margin: 2rem 0 0.5rem; }
p { margin: 0 0 1rem; max-width: 42rem; }
a { color: var(--link); text-underline-offset: 0.15em; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: 0.86em; background: var(--tint); padding: 0.08em 0.3em; border-radius: 3px; }
nav ol {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 0 0 1.5rem;
  padding: 0; font: 0.875rem/1.7 var(--sans);
}
.facts {
  display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 1px;
  margin: 0 0 1.75rem; border: 1px solid var(--rule);
  border-radius: 6px; overflow: hidden; font-family: var(--sans);
}
.facts > div { box-shadow: 0 0 0 1px var(--rule); padding: 0.75rem 0.9rem; }
.facts dt { font-size: 0.8125rem; line-height: 1.35; color: var(--soft); }
.facts dd {
  margin: 0.15rem 0 0; font-size: 1.375rem; line-height: 1.3; font-weight: 600;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.facts small {
  display: block; font-size: 0.8125rem; line-height: 1.4; font-weight: 400; color: var(--soft);
}
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible, pre:focus-visible, summary:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px;
}
table {
  border-collapse: collapse; width: 100%; margin: 0 0 1.75rem;
  font: 0.8438rem/1.45 var(--sans); font-variant-numeric: tabular-nums lining-nums;
}
.caption { margin: 0.75rem 0 0.5rem; }
.caption, figcaption { font: 0.875rem/1.5 var(--sans); color: var(--soft); max-width: 46rem; }
.caption b, figcaption b { color: var(--ink); }
thead { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); }
tbody { border-bottom: 1.5px solid var(--ink); }
th, td { padding: 0.35rem 0.7rem; text-align: left; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0.25rem; }
th:last-child, td:last-child { padding-right: 0.25rem; }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 400; white-space: nowrap; }
tbody tr + tr { border-top: 1px solid var(--rule); }
.number { text-align: right; }
.unit { white-space: nowrap; }
td.number, th.number[scope="row"] { white-space: nowrap; }
figure { margin: 0.75rem 0 2rem; }
.plot {
  background: var(--plot); border: 1px solid var(--rule); border-radius: 6px; padding: 0.75rem;
}
.plot svg {
  display: block; margin: 0 auto; height: auto;
  width: min(100%, calc(var(--inches) * 6.25rem));
  min-width: min(34rem, calc(var(--inches) * 4.8rem));
}
figcaption { margin-top: 0.55rem; }
details { margin: 0 0 0.75rem; border: 1px solid var(--rule); border-radius: 6px; }
summary { cursor: pointer; padding: 0.5rem 0.8rem; font: 0.9375rem/1.5 var(--sans); }
pre {
  margin: 0; padding: 0.75rem 0.9rem; overflow-x: auto; font-size: 0.8125rem; line-height: 1.5;
  border-top: 1px solid var(--rule); background: var(--tint); border-radius: 0 0 6px 6px;
}
footer {
  margin-top: 3rem; padding-top: 0.75rem; border-top: 1px solid var(--rule);
  color: var(--soft); font: 0.8125rem/1.5 var(--sans);
}
@media (max-width: 40rem) {
  body { padding-top: 1.5rem; font-size: 1rem; }
  h1 { font-size: 1.625rem; }
  .facts { grid-template-columns: 1fr 1fr; }
  .facts dd { font-size: 1.125rem; }
  th, td { padding: 0.35rem 0.5rem; }
}
@media print {
  :root {
    --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --tint: #f4f4f4; --link: #000;
    --plot: #fff;
  }
  @page { margin: 18mm 16mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, .caption { break-after: avoid; }
  figure, tr, .facts { break-inside: avoid; }
  .scroll { overflow: visible; }
  .plot { border: none; padding: 0; }
  .plot svg { min-width: 0; }
  pre { white-space: pre-wrap; }
}
"""
