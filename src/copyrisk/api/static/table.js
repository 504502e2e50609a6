// Tables that live: rows keep their identity, focus and place while their figures change.
import { fill, h, say } from "./dom.js";
import { UNKNOWN } from "./format.js";

/**
 * A table with a caption.
 *
 * `columns`: `{ label, cell(row), number, title, wide }`; `cell` gives text or a node. `keyOf(row)`: what a row is.
 * `hrefOf(row)`: where Enter, or a click on the row, leads. Returns `{ node, update(rows) }`; rows that are null are
 * unknown, and no rows are none.
 */
export function makeTable({ caption, columns, keyOf, hrefOf = null, empty = "nothing", shown = false, id = null }) {
  const head = h(
    "tr",
    {},
    columns.map((column) =>
      h("th", {
        scope: "col",
        class: classOf(column),
        title: column.title,
        text: column.label,
      }),
    ),
  );
  const body = h("tbody");
  const none = h("p", { class: "none", text: empty });
  const table = h(
    "table",
    { id, class: hrefOf ? "walk" : null },
    h("caption", { class: shown ? null : "unseen", text: caption }),
    h("thead", {}, head),
    body,
  );
  const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
  const rows = new Map();
  if (hrefOf) walk(body);

  function update(found) {
    const given = found ?? [];
    say(none, found === null || found === undefined ? UNKNOWN : empty);
    const focused = body.contains(document.activeElement) ? document.activeElement.closest("tr") : null;
    const wanted = new Map(given.map((row) => [String(keyOf(row)), row]));
    for (const [key, held] of rows) {
      if (!wanted.has(key)) {
        held.node.remove();
        rows.delete(key);
      }
    }
    let before = body.firstElementChild;
    for (const [key, row] of wanted) {
      const held = rows.get(key) ?? add(key);
      held.draw(row);
      if (held.node === before) before = before.nextElementSibling;
      else body.insertBefore(held.node, before);
    }
    if (hrefOf) settle(focused);
    none.hidden = given.length > 0;
    scroll.hidden = given.length === 0;
  }

  function add(key) {
    const cells = columns.map((column, place) =>
      h(place === 0 ? "th" : "td", { class: classOf(column), scope: place === 0 ? "row" : null }),
    );
    const node = h("tr", { data: { key } }, cells);
    const said = columns.map(() => undefined);
    const held = {
      node,
      draw(row) {
        columns.forEach((column, place) => {
          const value = column.cell(row);
          const told = value instanceof Node ? value.outerHTML : String(value);
          if (told === said[place]) return;
          said[place] = told;
          fill(cells[place], value);
        });
        if (hrefOf) node.dataset.href = hrefOf(row) ?? "";
        if (row.state) node.dataset.state = row.state;
      },
    };
    rows.set(key, held);
    return held;
  }

  /** One row can be reached by Tab; a row that was focused stays so wherever it moved to. */
  function settle(focused) {
    if (focused && body.contains(focused)) {
      if (!focused.contains(document.activeElement)) focused.focus({ preventScroll: true });
      return;
    }
    const all = [...body.rows];
    if (focused && all.length) all[0].focus({ preventScroll: true });
    const reached = all.find((row) => row.tabIndex === 0 && row.hasAttribute("tabindex")) ?? all[0];
    all.forEach((row) => row.setAttribute("tabindex", row === reached ? "0" : "-1"));
  }

  update([]);
  return { node: h("div", { class: "table" }, scroll, none), update };
}

function classOf(column) {
  return (
    [column.number ? "number" : "", column.wide ? "wide" : "", column.lesser ? "lesser" : ""].join(" ").trim() || null
  );
}

const STEPS = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

function walk(body) {
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && event.target === row && row.dataset.href) {
      location.hash = row.dataset.href;
      return;
    }
    const step = STEPS[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const all = [...body.rows];
    const place = Math.min(all.length - 1, Math.max(0, all.indexOf(row) + step));
    all.forEach((one, at) => one.setAttribute("tabindex", at === place ? "0" : "-1"));
    all[place].focus();
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row?.dataset.href || event.target.closest("a, button") || String(getSelection())) return;
    location.hash = row.dataset.href;
  });
}
