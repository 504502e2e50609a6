// What if these symbols move: who is warned, who is closed out, which masters cascade, what equity is left.
import { makeAsking } from "./asking.js";
import { fill, h, panel } from "./dom.js";
import { ask } from "./http.js";
import { drawOutcome } from "./what_if_outcome.js";

const MOST_ROWS = 50;
const FIRST_MOVE = "-2";
const QUICK = ["-10", "-5", "-2", "2", "5", "10"];

export function whatIfView({ query }) {
  const asking = makeAsking();
  const names = h("datalist", { id: "symbol-names" });
  const list = h("div", { class: "moves" });
  const result = h("div", { class: "grid", "aria-live": "polite", id: "outcome" });
  const busy = h("span", { class: "hint", role: "status" });

  const rows = () => [...list.children].map((row) => row.querySelectorAll("input"));

  function addRow(symbol = "", percentText = FIRST_MOVE) {
    if (list.children.length >= MOST_ROWS) return null;
    const row = moveRow(symbol, percentText, { remove, next });
    list.append(row);
    return row;
  }

  function remove(row) {
    const near = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    (near ?? addRow()).querySelector("input").focus();
  }

  /** Enter: on to the percent, on to the next row, a new row behind the last. */
  function next(row, field) {
    const [symbol, moved] = row.querySelectorAll("input");
    if (field === symbol) moved.select();
    else (row.nextElementSibling ?? addRow())?.querySelector("input").focus();
  }

  function moves() {
    const given = {};
    let bad = null;
    for (const [symbol, moved] of rows()) {
      const name = symbol.value.trim().toUpperCase();
      const text = moved.value.trim().replace("\u2212", "-").replace(/^\+/, "").replace(/\s*%$/, "");
      if (!name) continue;
      const isGood =
        /^-?\d{1,4}(\.\d{1,8})?$/.test(text) && Number(text) >= -99 && Number(text) <= 1000 && !(name in given);
      moved.toggleAttribute("aria-invalid", !isGood);
      if (!isGood) bad ??= moved;
      given[name] = text;
    }
    bad?.focus();
    return bad ? null : given;
  }

  async function run(event) {
    event?.preventDefault();
    const given = moves();
    if (given === null) {
      asking.node.textContent = "A move is a percentage from -99 to 1000, each symbol once.";
      asking.node.hidden = false;
      return;
    }
    if (!Object.keys(given).length) return;
    history.replaceState(null, "", `#/what-if?${new URLSearchParams(given)}`);
    busy.textContent = "working it out";
    result.classList.add("old");
    const found = await asking.run((signal) => ask("/api/risk/what-if", { body: { moves: given }, signal }));
    busy.textContent = "";
    if (found === undefined) return;
    result.classList.remove("old");
    drawOutcome(result, found);
  }

  const form = h(
    "form",
    {
      id: "what-if",
      on: {
        submit: run,
        keydown(event) {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
        },
      },
    },
    list,
    h(
      "div",
      { class: "row" },
      h("button", {
        type: "button",
        text: "Add a symbol",
        on: { click: () => addRow()?.querySelector("input").focus() },
      }),
      h("button", { type: "submit", class: "main", text: "Work it out", title: "Ctrl + Enter" }),
      busy,
    ),
  );
  const node = h(
    "div",
    { class: "grid" },
    panel(
      "What if",
      { wide: "full" },
      h("p", {
        class: "hint",
        text: "These symbols move by so many percent, all at once, everything else as it is. Nothing is changed by asking. Equity leaves demo accounts out.",
      }),
      names,
      form,
      asking.node,
    ),
    result,
  );
  [...query].forEach(([symbol, text]) => addRow(symbol, text));
  if (!list.children.length) addRow();
  return {
    title: "What if",
    node,
    drop: asking.drop,
    begin() {
      suggest(names);
      if (query.size) run();
    },
  };
}

async function suggest(names) {
  try {
    const found = await ask("/api/risk/ladder");
    fill(
      names,
      (found.symbols ?? []).map((row) => h("option", { value: row.symbol })),
    );
  } catch {
    // symbols can be typed
  }
}

function moveRow(symbol, percentText, { remove, next }) {
  const name = h("input", {
    value: symbol,
    list: "symbol-names",
    "aria-label": "Symbol",
    placeholder: "EURUSD",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: "32",
  });
  const moved = h("input", {
    value: percentText,
    "aria-label": "Move in percent",
    inputmode: "text",
    class: "number",
    autocomplete: "off",
    maxlength: "12",
  });
  const quick = h(
    "span",
    { class: "quick" },
    QUICK.map((text) =>
      h("button", {
        type: "button",
        tabindex: "-1",
        text: `${text.startsWith("-") ? text.replace("-", "\u2212") : `+${text}`} %`,
        on: {
          click() {
            moved.value = text;
          },
        },
      }),
    ),
  );
  const row = h(
    "div",
    { class: "move" },
    name,
    moved,
    h("span", { class: "hint", text: "%" }),
    quick,
    h("button", { type: "button", text: "\u00d7", "aria-label": "Remove this row", on: { click: () => remove(row) } }),
  );
  for (const field of [name, moved]) {
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      next(row, field);
    });
  }
  return row;
}
