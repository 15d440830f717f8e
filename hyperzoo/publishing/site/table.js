// Sorting, filters, expandable rows, copy buttons and the theme. Without it the page shows everything.
"use strict";

const table = document.querySelector("table");
const heads = [...table.tHead.rows[0].cells];
const selects = [...document.querySelectorAll("#filters select")];

const isNumber = (column) => heads[column].classList.contains("number");

function value(body, column) {
  const text = body.rows[0].cells[column].dataset.value;
  return isNumber(column) ? Number(text) : text;
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const group = heads.findIndex((head) => "group" in head.dataset);
let groups = 1; // order of the groups: 1 ascending, -1 descending

// Rows stay in their groups. The first click on a numeric column sorts in descending order; every further click reverses
// the order. A click on the column of the groups reverses their order.
function sort(column) {
  const head = heads[column];
  const opposite = { ascending: "descending", descending: "ascending" };
  const first = isNumber(column) || column === group ? "descending" : "ascending";
  const order = opposite[head.getAttribute("aria-sort")] ?? first;
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  if (column === group) groups = sign;
  const by = (a, b, place, sign) => sign * compare(value(a, place), value(b, place));
  const bodies = [...table.tBodies].sort(
    (a, b) => by(a, b, group, groups) || (column === group ? 0 : by(a, b, column, sign)),
  );
  table.append(...bodies);
}

function filter() {
  const chosen = selects.filter((select) => select.value);
  const cell = (body, column) => body.querySelector(`[data-filter="${column}"]`);
  const fits = (body) => chosen.every((select) => cell(body, select.dataset.filter).dataset.value === select.value);
  const bodies = [...table.tBodies];
  for (const body of bodies) body.hidden = !fits(body);
  const shown = bodies.filter((body) => !body.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${bodies.length} weights`;
  document.getElementById("none").hidden = shown > 0;
}

function open(button, yes) {
  button.setAttribute("aria-expanded", yes);
  document.getElementById(button.getAttribute("aria-controls")).hidden = !yes;
}

async function copy(button) {
  const code = button.closest("figure").querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // no clipboard access: select the code for copying by keyboard
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// A link from one card to another opens the row, even if a filter hides it.
function follow() {
  const button = document.querySelector(`[aria-controls="${CSS.escape(location.hash.slice(1))}"]`);
  if (!button) return;
  if (button.closest("tbody").hidden) reset();
  open(button, true);
  button.closest("tbody").scrollIntoView();
}

function reset() {
  document.getElementById("filters").reset();
  filter();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.getElementById("theme");

function shownTheme() {
  return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
}

function nameTheme() {
  theme.textContent = shownTheme() === "dark" ? "Light" : "Dark";
  theme.setAttribute("aria-label", `${theme.textContent} theme`);
}

function stored(change) {
  try {
    return change(localStorage);
  } catch {
    return null; // storage is blocked: the choice lasts until the page closes
  }
}

theme.addEventListener("click", () => {
  const chosen = shownTheme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  stored((storage) => storage.setItem("hyperzoo-theme", chosen));
  nameTheme();
});
dark.addEventListener("change", nameTheme);
const kept = stored((storage) => storage.getItem("hyperzoo-theme"));
if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
nameTheme();
theme.hidden = false;

heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));
for (const select of selects) select.addEventListener("change", filter);
addEventListener("hashchange", follow);
document.getElementById("reset").addEventListener("click", () => {
  reset();
  selects[0].focus();
});
for (const button of document.querySelectorAll("button[aria-expanded]")) {
  button.addEventListener("click", () => open(button, button.getAttribute("aria-expanded") !== "true"));
  open(button, location.hash === `#${button.getAttribute("aria-controls")}`);
}
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", () => copy(button));
  button.hidden = false;
}
