// What if these symbols move: who is warned, who is closed out, which masters cascade, what equity is left.
import { makeAsking } from "./asking.js";
import { fill, h, panel } from "./dom.js";
import {
  STATES,
  accountHref,
  accountLink,
  count,
  figure,
  isKnown,
  lots,
  numberOf,
  owned,
  percent,
  signed,
  stateMark,
  time,
  usd,
} from "./format.js";
import { ask } from "./http.js";
import { makeTable } from "./table.js";

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
    drawResult(result, found);
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
        text: "These symbols move by so many percent, all at once, everything else as it is. Nothing is changed by asking.",
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
      list.querySelector("input").focus({ preventScroll: true });
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
        text: `${text.replace("-", "\u2212")} %`,
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

// ---- what came of it

function drawResult(node, found) {
  const left = found.equity ?? {};
  const change = numberOf(left.after_usd) - numberOf(left.before_usd);
  const facts = [
    ["warned", figure(count(found.warned?.count), "warning")],
    ["closed out", figure(count(found.liquidated?.count), "critical")],
    ["masters that cascade", figure(count(found.cascades?.length))],
    ["equity before, USD", figure(usd(left.before_usd))],
    ["equity after, USD", figure(usd(left.after_usd))],
    ["change, USD", signed(change)],
    ["below zero", figure(count(left.negative_accounts))],
    ["owed below zero, USD", signed(left.negative_usd)],
    ["unknown accounts", figure(count(found.unknown))],
  ];
  fill(
    node,
    h(
      "dl",
      { class: "facts panel full" },
      facts.map(([label, value]) => h("div", {}, h("dt", { text: label }), h("dd", {}, value))),
      h("div", {}, h("dt", { text: "as of" }), h("dd", {}, time(found.now_ms))),
    ),
    panel("States before and after", { wide: "third" }, statesTable(found)),
    panel(
      "Closed out",
      { wide: "two-thirds", aside: capped(found.liquidated) },
      accountsTable(
        "Accounts that would be closed out",
        "Nobody would be closed out.",
        found.liquidated?.accounts,
        true,
      ),
    ),
    panel(
      "Warned",
      { wide: "half", aside: capped(found.warned) },
      accountsTable("Accounts that would be warned", "Nobody would be warned.", found.warned?.accounts, false),
    ),
    panel("Cascades", { wide: "half" }, cascadesTable(found.cascades)),
  );
}

function capped(part) {
  const [all, listed] = [part?.count ?? 0, part?.accounts?.length ?? 0];
  return h("span", {
    class: "hint",
    text: all > listed ? `${count(listed)} of ${count(all)} are listed` : `${count(all)}`,
  });
}

function filled(table, rows) {
  table.update(rows ?? []);
  return table.node;
}

function statesTable({ before, after }) {
  const present = STATES.filter((state) => isKnown(before?.[state]) || isKnown(after?.[state]));
  const table = makeTable({
    caption: "Accounts in each state before and after",
    keyOf: (row) => row.name,
    empty: "unknown",
    columns: [
      { label: "state", cell: (row) => stateMark(row.name) },
      { label: "before", number: true, cell: (row) => figure(count(row.before)) },
      { label: "after", number: true, cell: (row) => figure(count(row.after)) },
      {
        label: "change",
        number: true,
        cell: (row) =>
          row.after === row.before
            ? h("span", { class: "faint", text: "0" })
            : `${row.after > row.before ? "+" : "\u2212"}${count(Math.abs(row.after - row.before))}`,
      },
    ],
  });
  return filled(
    table,
    present.map((name) => ({ name, before: before?.[name] ?? 0, after: after?.[name] ?? 0 })),
  );
}

function accountsTable(caption, empty, rows, isClosed) {
  const closed = [
    { label: "closes", number: true, cell: (row) => figure(count(row.closes)) },
    { label: "lots", number: true, cell: (row) => figure(lots(row.lots)) },
    {
      label: "level after",
      number: true,
      cell: (row) => (row.level_after_pct === null ? "flat" : figure(percent(row.level_after_pct))),
    },
    { label: "equity after", number: true, cell: (row) => owned(row.equity_after_usd) },
  ];
  const table = makeTable({
    caption,
    empty,
    keyOf: (row) => row.account,
    hrefOf: (row) => accountHref(row.account),
    columns: [
      { label: "account", cell: (row) => accountLink(row.account) },
      { label: "level", number: true, cell: (row) => figure(percent(row.margin_level_pct)) },
      { label: "equity", number: true, cell: (row) => owned(row.equity_usd) },
      ...(isClosed ? closed : []),
    ],
  });
  return filled(table, rows);
}

function cascadesTable(rows) {
  const table = makeTable({
    caption: "Masters whose copies would be closed",
    empty: "No master would cascade.",
    keyOf: (row) => row.master_id,
    columns: [
      { label: "master", cell: (row) => accountLink(`strategy_provider:${row.master_id}`) },
      { label: "followers", number: true, cell: (row) => figure(count(row.followers)) },
      { label: "copies", number: true, cell: (row) => figure(count(row.copies)) },
      { label: "lots", number: true, cell: (row) => figure(lots(row.lots)) },
      {
        label: "onto",
        wide: true,
        cell: (row) =>
          row.list?.length
            ? h(
                "details",
                {},
                h("summary", { text: "list" }),
                h(
                  "ul",
                  { class: "ids" },
                  row.list.map((id) => h("li", {}, accountLink(`copy_follower:${id}`))),
                  row.followers > row.list.length
                    ? h("li", { text: `and ${count(row.followers - row.list.length)} more` })
                    : null,
                ),
              )
            : "\u2013",
      },
    ],
  });
  return filled(table, rows);
}
