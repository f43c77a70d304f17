"""The few colours of the pictures, and the style sheet of the page."""

PAPER = "#ffffff"
INK = "#1d2229"
QUIET = "#69727d"
HAIRLINE = "#dfe3e8"
MUTED = "#c3cad3"
ACCENT = "#2f5fd0"
ALARM = "#c2361f"

PAGE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1d2229; --quiet: #626b76;
  --line: #e3e6ea; --accent: #2f5fd0; --tint: #2f5fd014; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2025; --ink: #e6e9ed;
  --quiet: #9aa4b0; --line: #30363e; --accent: #8fb0ff; --tint: #8fb0ff1a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 54rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0; }
h2 { font-size: 1.1rem; margin: 3rem 0 .9rem; }
h1 + p { margin: .3rem 0 0; color: var(--quiet); }
.verdict { margin: 1.6rem 0; padding: .9rem 1.1rem; font-size: 1.08rem; background: var(--tint);
  border-left: 3px solid var(--accent); border-radius: 0 .5rem .5rem 0; }
.quiet, figcaption { color: var(--quiet); font-size: .92rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1.1rem 2.6rem; margin: 1.6rem 0; }
.facts dt, th { color: var(--quiet); font-size: .82rem; font-weight: 500; }
.facts dd { margin: 0; font-size: 1.12rem; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .75rem .45rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.scores td + td, .scores th + th { text-align: right; padding-right: 0; padding-left: .75rem; }
.scores td + td { white-space: nowrap; }
.columns .figure { text-align: right; white-space: nowrap; }
.columns tr :last-child { padding-right: 0; }
.scores tr.own td { font-weight: 650; color: var(--accent); }
figure { margin: 0; }
table + figure { margin-top: 1.6rem; }
figure div { overflow-x: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .6rem; padding: .75rem; }
img { display: block; height: auto; max-width: 100%; margin: 0 auto; }
img.wide { min-width: 34rem; }
figcaption { margin-top: .55rem; }
.settings { columns: 22rem; column-gap: 2.5rem; }
.settings section { break-inside: avoid-column; margin-bottom: 1.4rem; }
.settings h3 { font-size: .92rem; margin: 0 0 .2rem; }
.settings td { font-size: .86rem; padding: .22rem .75rem .22rem 0; }
.settings td + td { padding-right: 0; text-align: right; overflow-wrap: anywhere; }
summary { color: var(--quiet); font-size: .92rem; cursor: pointer; }
summary + .settings { margin-top: .9rem; }
code, pre { font: .88em/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { margin: 0; padding: .9rem 1.1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { figure div { filter: brightness(.92); } }
@media print { body { padding: 0; max-width: none; } }
"""
