// Run in the page: what a reader of screens, or of small ones, would stumble over.
() => {
  const bad = [];
  const named = (node) => node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim();
  for (const node of document.querySelectorAll("input, select, button, a")) {
    if (node.checkVisibility() && !named(node)) bad.push(`no name: ${node.outerHTML}`);
  }
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption?.textContent) bad.push("a table without a caption");
    if (!table.querySelector("thead th")) bad.push("a table without heads");
    for (const head of table.querySelectorAll("th")) if (!head.scope) bad.push(`no scope: ${head.textContent}`);
  }
  if (document.querySelectorAll("h1").length !== 1) bad.push("not one h1");
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  if (new Set(ids).size !== ids.length) bad.push(`ids twice: ${ids}`);
  if (document.documentElement.scrollWidth > innerWidth) bad.push(`${document.documentElement.scrollWidth} px wide`);
  for (const node of document.querySelectorAll("td.number, th.number")) {
    if (getComputedStyle(node).textAlign !== "right") bad.push(`a number on the left: ${node.textContent}`);
  }
  return bad;
};
