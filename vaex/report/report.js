// Clicking a header sorts the table by that column: numbers by value, and empty cells last.
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
