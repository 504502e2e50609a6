// Tables that live: rows keep their identity, focus and place while their figures change.
import { fill, h, say } from "./dom.js";
import { UNKNOWN } from "./format.js";

/**
 * A table with a caption.
 *
 * `columns`: `{ label, cell(row), number, title, wide }`; `cell` gives text or a node. `keyOf(row)`: what a row is.
 * `hrefOf(row)`: where Enter, or a click on the row, leads. `empty`: what no rows say, a text or a function that gives it.
 * `hold`: while the pointer or the focus is in the table its rows keep their places, so that a click never hits another
 * row than was aimed at; new rows come behind the others (`append`) or wait (`wait`). Returns `{ node, update(rows),
 * held }`; `held` is a note about that. Rows that are null are unknown, and no rows are none.
 */
export function makeTable({
  caption,
  columns,
  keyOf,
  hrefOf = null,
  empty = "nothing",
  shown = false,
  id = null,
  hold = null,
}) {
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
  const none = h("p", { class: "none" });
  const table = h(
    "table",
    { id, class: hrefOf ? "walk" : null },
    h("caption", { class: shown ? null : "unseen", text: caption }),
    h("thead", {}, head),
    body,
  );
  const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
  const held = h("span", { class: "held", hidden: true });
  const rows = new Map();
  let [last, isUpdating] = [[], false];
  const isHeld = hold ? holding(scroll, () => isUpdating || update(last)) : () => false;
  if (hrefOf) walk(body);

  /** Those that are there where they are; who has gone leaves a grey row behind. */
  function inPlace(wanted) {
    const kept = new Map([...rows.keys()].map((key) => [key, wanted.get(key) ?? null]));
    const waiting = [...wanted].filter(([key]) => !rows.has(key));
    say(held, waiting.length && hold === "wait" ? `order held, ${waiting.length} newer` : "order held");
    return hold === "wait" ? kept : new Map([...kept, ...waiting]);
  }

  function update(found) {
    last = found;
    isUpdating = true; // a row that is moved, or goes, loses the focus meanwhile
    draw(found);
    isUpdating = false;
  }

  function draw(found) {
    const given = found ?? [];
    say(none, found === null || found === undefined ? UNKNOWN : typeof empty === "function" ? empty() : empty);
    const focused = body.contains(document.activeElement) ? document.activeElement.closest("tr") : null;
    const inOrder = new Map(given.map((row) => [String(keyOf(row)), row]));
    const isKept = isHeld() && rows.size > 0 && given.length > 0; // of what is unknown, or none, nothing is kept
    const wanted = isKept ? inPlace(inOrder) : inOrder;
    held.hidden = !isKept;
    for (const [key, one] of rows) {
      if (!wanted.has(key)) {
        one.node.remove();
        rows.delete(key);
      }
    }
    let before = body.firstElementChild;
    for (const [key, row] of wanted) {
      const one = rows.get(key) ?? add(key);
      if (row !== null) one.draw(row);
      one.node.classList.toggle("gone", row === null && hold !== "wait");
      if (one.node === before) before = before.nextElementSibling;
      else body.insertBefore(one.node, before);
    }
    inTheirOrder(wanted);
    if (hrefOf) settle(focused);
    none.hidden = wanted.size > 0;
    scroll.hidden = wanted.size === 0;
  }

  /** The map of rows goes in the order of the rows on the page. */
  function inTheirOrder(wanted) {
    for (const key of wanted.keys()) {
      const one = rows.get(key);
      rows.delete(key);
      rows.set(key, one);
    }
  }

  function add(key) {
    const cells = columns.map((column, place) =>
      h(place === 0 ? "th" : "td", { class: classOf(column), scope: place === 0 ? "row" : null }),
    );
    const node = h("tr", { data: { key } }, cells);
    const said = columns.map(() => undefined);
    const one = {
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
    rows.set(key, one);
    return one;
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
  return { node: h("div", { class: "table" }, scroll, none), update, held };
}

const TOUCH_MS = 1_000;

/** Whether the pointer or the focus is in a node; `act` is called when that changes. */
function holding(node, act) {
  const inside = { pointer: false, focus: false };
  let leaving = 0;
  const set = (what, value) => () => {
    inside[what] = value;
    act();
  };
  node.addEventListener("pointerenter", () => {
    clearTimeout(leaving);
    set("pointer", true)();
  });
  node.addEventListener("pointerleave", (event) => {
    clearTimeout(leaving);
    if (event.pointerType === "touch")
      leaving = setTimeout(set("pointer", false), TOUCH_MS); // the click comes after
    else set("pointer", false)();
  });
  node.addEventListener("focusin", set("focus", true));
  node.addEventListener("focusout", (event) => {
    if (!node.contains(event.relatedTarget)) set("focus", false)();
  });
  return () => inside.pointer || inside.focus;
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
