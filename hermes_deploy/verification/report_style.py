"""The style of the report: light and dark, and readable on a phone. Text only."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--line:#d1d9e0;--page:#fff;--soft:#f3f5f7;--bar:#2f6fb7;
--good:#1a7f37;--bad:#b3261e;--other:#fbe3c0}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaef;--dim:#9aa5b1;--line:#3a424c;--page:#14181d;--soft:#1d232a;
--bar:#6ea8e8;--good:#58c471;--bad:#ff8a80;--other:#5a3f12}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:56rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2}
h2{font-size:1.25rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
h3{font-size:1.05rem;margin-top:1.75rem}
a{color:inherit}
.reference{background:var(--soft);border-left:4px solid var(--bar);padding:.6rem .9rem;overflow-wrap:anywhere}
.verdicts{padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.5rem}
.verdicts li{background:var(--soft);padding:.3rem .8rem;border-radius:.4rem}
.good{color:var(--good)}
.bad,.problems{color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);font-weight:normal}
thead th,caption{color:var(--dim);font-size:.85rem;text-align:left}
.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.meter{width:30%;min-width:4rem}
.meter span{display:block;height:.7rem;background:var(--bar);border-radius:.2rem}
figure{margin:0}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--dim);font:11px system-ui,sans-serif}
svg .word{fill:var(--ink)}
svg .bar{fill:var(--bar)}
svg .axis{stroke:var(--line);stroke-width:1}
svg .mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:4 3}
details{border-bottom:1px solid var(--line);padding:.4rem 0}
summary{cursor:pointer;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);padding:.7rem;
font:.85rem/1.5 ui-monospace,monospace}
.same{text-decoration:underline;text-decoration-color:var(--bar);text-underline-offset:.25em}
.other{background:var(--other)}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
.small,footer{font-size:.85rem;color:var(--dim);overflow-wrap:anywhere}
@media (max-width:30rem){dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}th,td{padding:.3rem .35rem}}
"""
