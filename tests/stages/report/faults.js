/* What is wrong for people who cannot see or point: controls without a name, tables without headings,
   ids given twice, levels skipped. The body of a function, run in the page. */
const faults = [];
for (const node of document.querySelectorAll("input, select, button, a, [role=application]")) {
  const name = node.getAttribute("aria-label") || Array.from(node.labels || []).map((l) => l.textContent).join("")
    || (node.matches("button, a") ? node.textContent : "");
  if (!name.trim()) faults.push("no name: " + node.outerHTML.slice(0, 80));
}
for (const table of document.querySelectorAll("table")) {
  if (!table.querySelector("thead th")) faults.push("no headings: " + table.outerHTML.slice(0, 80));
}
for (const head of document.querySelectorAll("#documents th, #funnel th")) {
  if (!head.textContent.trim()) faults.push("an empty heading: " + head.parentElement.outerHTML.slice(0, 80));
}
const ids = Array.from(document.querySelectorAll("[id]"), (node) => node.id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push("twice: " + id);
for (const node of document.querySelectorAll("[aria-describedby]")) {
  if (!document.getElementById(node.getAttribute("aria-describedby"))) faults.push("points nowhere");
}
let level = 1;
for (const head of document.querySelectorAll("h1, h2, h3, h4")) {
  if (Number(head.tagName[1]) > level + 1) faults.push("a level skipped at " + head.textContent);
  level = Number(head.tagName[1]);
}
if (!document.documentElement.lang) faults.push("no language");
for (const node of document.querySelectorAll(".wide")) {
  if (node.scrollWidth > node.clientWidth + 1 && node.tabIndex !== 0) faults.push("scrolls without keyboard");
}
return faults;
