"use strict";
// The theme puts wide tables into boxes that scroll; the keyboard must reach them.
// A table of results with more than three rows is sorted by a press on the head of a column.
(() => {
  const reach = () => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", "table");
    }
  };

  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, "").replace(/−/g, "-"));
    return { text, number };
  };

  const sort = (table, column, head) => {
    const rising = head.getAttribute("aria-sort") !== "ascending";
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, ...value(row, column) }));
    const numbers = rows.filter((one) => !Number.isNaN(one.number)).length * 2 > rows.length;
    const known = rows.filter((one) => !numbers || !Number.isNaN(one.number));
    const rest = rows.filter((one) => !known.includes(one)); // what has no number stays below
    known.sort((a, b) => (numbers ? a.number - b.number : a.text.localeCompare(b.text)));
    if (!rising) known.reverse();
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    table.tBodies[0].append(...[...known, ...rest].map((one) => one.row));
  };

  const sortable = (table) => {
    if (!table.tHead || !table.tBodies[0] || table.tBodies[0].rows.length < 4) return;
    const heads = table.tHead.rows[0].cells;
    if ([...table.tBodies[0].rows].some((row) => row.cells.length !== heads.length)) return;
    [...heads].forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  };

  if (location.pathname.includes("/results/")) {
    document.querySelectorAll(".md-typeset table:not([class])").forEach(sortable);
  }
  new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
  reach();
})();
