"""How the page looks, and the few lines that sort its tables. Nothing here comes from a network."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1d2127; --soft: #5d6673; --line: #e1e4e9; --head: #f0f2f5;
  --accent: #2f6fcb; --warn: #fff6e0; --warn-line: #e2a93b; --bad: #b3372f; --good: #1d7a55;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101215; --card: #191c21; --ink: #e4e7eb; --soft: #9aa4b1; --line: #2c3138; --head: #20242a;
    --accent: #79aaf2; --warn: #2b2412; --warn-line: #b98a2b; --bad: #f0857c; --good: #6cc9a1;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 20px 0 8px; font-weight: 600; }
p { margin: 8px 0; max-width: 78ch; }
.lead { color: var(--soft); margin: 0; }
.small { color: var(--soft); font-size: 13px; }
.warning {
  background: var(--warn); border-left: 3px solid var(--warn-line); border-radius: 0 6px 6px 0;
  padding: 8px 14px; max-width: none; overflow-wrap: anywhere;
}
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 13px; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
dl { margin: 8px 0; font-size: 13px; }
dt { font-weight: 600; margin-top: 8px; }
dd { margin: 0; color: var(--soft); max-width: 100ch; overflow-wrap: anywhere; }
.cards, .plots { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.cards { margin: 12px 0; }
.card, .plot, .sheet, .box { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 16px; }
.card .what { font-size: 13px; font-weight: 600; }
.card .of { font-size: 12px; color: var(--soft); }
.card .value { font-size: 22px; font-weight: 600; line-height: 1.2; margin-top: 8px; }
.card .winner { color: var(--accent); font-weight: 600; margin: 2px 0 8px; overflow-wrap: anywhere; }
.card ul {
  margin: 0; padding: 8px 0 0; list-style: none; border-top: 1px solid var(--line); font-size: 12.5px;
  color: var(--soft); overflow-wrap: anywhere;
}
.card li + li { margin-top: 4px; }
.plot { padding: 10px 10px 6px; margin: 0; color: var(--ink); }
.plot svg { display: block; width: 100%; height: auto; font-family: inherit; }
.sheets { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); }
.sheet { padding: 12px 14px 14px; margin: 0; min-width: 0; }
.sheet h3 { margin: 0 0 8px; }
.strips { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 10px; align-items: center; }
.strips span { font-size: 12px; color: var(--soft); text-align: right; max-width: 11em; overflow-wrap: anywhere; }
.strips img { display: block; width: 100%; height: auto; border-radius: 2px; }
.strips .inputs { padding-bottom: 5px; }
.box { overflow: auto; width: fit-content; max-width: 100%; max-height: 34rem; margin: 8px 0 12px; }
.box:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: separate; border-spacing: 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td {
  padding: 6px 12px; text-align: left; white-space: nowrap; vertical-align: top; border-bottom: 1px solid var(--line);
}
th { position: sticky; top: 0; background: var(--head); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
tbody tr:hover td { background: var(--head); }
.n { text-align: right; }
td.long { white-space: normal; min-width: 26em; }
.failed, .interrupted { color: var(--bad); } .running { color: var(--warn-line); } .completed { color: var(--good); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
@media (max-width: 560px) {
  main { padding: 18px 12px 40px; }
  h1 { font-size: 21px; }
  th, td { padding: 5px 9px; }
  .sheet { padding: 10px; }
  .strips { gap: 2px 7px; }
  .strips span { font-size: 10.5px; max-width: 5.6em; }
}
@media print { body { background: #fff; } .box { overflow: visible; max-height: none; } }
"""

# A click on a header sorts by it, numbers as numbers, and what has none at the end.
SORTING = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, n) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[n].textContent;
      const number = text => parseFloat(text.replace(/,/g, "").replace("−", "-"));
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)], [p, q] = [number(x), number(y)];
        if (x === "–" || y === "–") return (x === "–") - (y === "–");
        const by = isNaN(p) || isNaN(q) ? x.localeCompare(y, undefined, {numeric: true}) : p - q;
        return up ? by : -by;
      };
      body.append(...[...body.rows].sort(order));
    };
  });
}
"""
