// What came of a what-if.
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
import { makeTable } from "./table.js";

/** Replace what is in `node` by what came of the moves. */
export function drawOutcome(node, found) {
  const left = found.equity ?? {};
  const change = numberOf(left.after_usd) - numberOf(left.before_usd);
  const facts = [
    ["warned", figure(count(found.warned?.count), "warning")],
    ["closed out", figure(count(found.liquidated?.count), "critical")],
    ["masters that cascade", figure(count(found.cascades?.count))],
    ["equity before, USD", figure(usd(left.before_usd))],
    ["equity after, USD", figure(usd(left.after_usd))],
    ["change, USD", signed(change)],
    ["below zero", figure(count(left.negative_accounts))],
    ["owed below zero, USD", signed(left.negative_usd)],
    ["unknown accounts", figure(count(found.unknown))],
    ["wait for a closed market", figure(count(found.closed))],
  ];
  fill(
    node,
    h(
      "dl",
      { class: "facts panel full" },
      facts.map(([label, value]) => h("div", {}, h("dt", { text: label }), h("dd", {}, value))),
      h("div", {}, h("dt", { text: "as of" }), h("dd", {}, time(found.now_ms))),
    ),
    h(
      "div",
      { class: "third stack" }, // beside the long table, so that cascades are seen without scrolling
      panel("States before and after", {}, statesTable(found)),
      panel("Cascades", { aside: capped(found.cascades) }, cascadesTable(found.cascades?.list)),
      panel(
        "Warned",
        { aside: capped(found.warned) },
        accountsTable("Accounts that would be warned", "Nobody would be warned.", found.warned?.accounts, false),
      ),
    ),
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
  );
}

function capped(part) {
  const [all, listed] = [part?.count ?? 0, (part?.accounts ?? part?.list)?.length ?? 0];
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
