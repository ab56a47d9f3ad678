
"use strict";
(() => {
  // A column's numbers are in data-v; what has none comes last, whatever the direction.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.classList.contains("n") ? parseFloat(cell.dataset.v) : cell.textContent;
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
    return a - b;
  };
  const sort = (head) => {
    const table = head.closest("table");
    const column = head.cellIndex;
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => {
      const missing = Number.isNaN(a) - Number.isNaN(b);
      return missing || (Number.isNaN(a) ? 0 : direction * compare(a, b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const button of document.querySelectorAll(".sortable th button")) {
    button.addEventListener("click", () => sort(button.parentNode));
  }

  for (const picker of document.querySelectorAll(".picker select")) {
    const curves = [...document.querySelectorAll("[data-curve]")];
    const show = () => {
      for (const curve of curves) {
        const chosen = curve.dataset.curve === picker.value;
        if (curve.classList.contains("curve")) curve.classList.toggle("chosen", chosen);
        else curve.classList.toggle("aside", !chosen);
        // What is drawn last lies on top.
        if (chosen) curve.parentNode.append(curve);
      }
    };
    picker.addEventListener("change", show);
    show();
  }

  // Tooltips do not open by touch.
  const readout = document.querySelector(".readout");
  const matrix = document.querySelector(".matrix");
  if (readout && matrix) {
    matrix.addEventListener("click", (event) => {
      const cell = event.target.closest("[title]");
      if (cell) readout.textContent = cell.title;
    });
  }

  // Browsers print a closed element closed.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const element of opened) element.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const element of opened) element.open = false;
  });
})();
