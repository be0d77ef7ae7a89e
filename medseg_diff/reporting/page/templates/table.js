// A table whose headings sort it, numbers as numbers; what has no value comes last either way.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = Array.from(table.tHead.rows[0].cells);
  const said = document.getElementById("sorted");
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const key = (row) => (column ? row.cells[column].dataset.value : row.cells[0].textContent);
      const rows = Array.from(body.rows).sort((first, second) => {
        const a = key(first), b = key(second);
        if (!a || !b) return a ? -1 : b ? 1 : 0;
        const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
        return up ? order : -order;
      });
      rows.forEach((row) => body.appendChild(row));
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      said.textContent = "Sorted by " + heading.textContent.trim() + (up ? ", ascending." : ", descending.");
    });
  });
}
// Shown inside another page, as MLflow shows it, it has no pages of cases beside it to lead to.
if (window.parent !== window) {
  for (const link of document.querySelectorAll("tbody a")) link.replaceWith(link.textContent);
}
