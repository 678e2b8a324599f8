// Tables that sort, boxes that scroll, and the switches of small screens: by keyboard, and told to screen readers. Without
// this script the pages are whole, the tables in the order of their files.

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text);
  return text !== "" && !Number.isNaN(number) ? number : text;
}

// Numbers before words, empty cells last whichever way round.
function compare(a, b, sign) {
  if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => compare(a, b, down ? -1 : 1));
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.replaceChildren(button);
  });
}

// What is wider than the page scrolls in a box of its own, which takes the keyboard's focus then.
function focusable(box) {
  const wide = box.scrollWidth > box.clientWidth + 1;
  wide ? box.setAttribute("tabindex", "0") : box.removeAttribute("tabindex");
}

// The labels that show and hide the lists of pages and headings, as buttons. Escape hides them.
function makeSwitch(label) {
  const box = document.getElementById(label.htmlFor);
  const tell = () => label.setAttribute("aria-expanded", box.checked);
  const set = (checked) => {
    box.checked = checked;
    box.dispatchEvent(new Event("change"));
  };
  box.addEventListener("change", tell);
  label.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    set(!box.checked);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && box.checked) set(false);
  });
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("label[role=button]").forEach(makeSwitch);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  const boxes = document.querySelectorAll(".table-wrapper, pre, .formula, .sidebar-scroll, .toc-scroll");
  const look = () => boxes.forEach(focusable);
  look();
  window.addEventListener("resize", look);
});
