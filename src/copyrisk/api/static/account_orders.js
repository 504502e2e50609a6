// An account's orders, beside the prices of now; and what happened to it.
import { makeAsking } from "./asking.js";
import { h, say } from "./dom.js";
import { said } from "./entries.js";
import { UNKNOWN, count, figure, finer, isKnown, lots, price, reasonWord, signed, time, usd } from "./format.js";
import { ask, pathOf } from "./http.js";
import { makeTable } from "./table.js";

const PAGE = 50;
const MOST_ORDERS = 500;
const PRICES_AGAIN_MS = 2_000;

// ---- orders

const text = (value) => (value === null || value === undefined || value === "" ? "\u2013" : String(value));
const level = (value) => (isKnown(value) && Number(value) !== 0 ? price(value) : "\u2013");

/** Where a bought position would be closed, and a sold one: at the bid, at the ask. What waits is filled at the other. */
function side(row) {
  const type = String(row.order_type);
  return type.startsWith("BUY") === type.includes("_") ? "ask" : "bid";
}

/** Prices of now of the symbols that anybody holds; for who may see the house's figures. */
function pricesPart(changed) {
  const asking = makeAsking(); // whoever may not see them is told "unknown" in the table
  let [quotes, nextAt] = [new Map(), 0];
  return {
    of(row) {
      const quote = quotes.get(row.symbol);
      return quote ? price(quote[side(row)], finer(quote)) : UNKNOWN;
    },
    drop: asking.drop,
    async beat() {
      if (document.hidden || performance.now() < nextAt) return;
      nextAt = Infinity;
      const found = await asking.run((signal) => ask("/api/risk/ladder", { signal }));
      nextAt = performance.now() + PRICES_AGAIN_MS;
      quotes = new Map((found?.symbols ?? []).map((one) => [one.symbol, one]));
      changed();
    },
  };
}

export function ordersPart(type, id) {
  const asking = makeAsking();
  let orders = [];
  const prices = pricesPart(() => table.update(orders));
  const told = h("p", { class: "hint" });
  const table = makeTable({
    caption: "Positions and orders",
    id: "orders",
    keyOf: (row) => row.order_id,
    empty: "No open order.",
    columns: [
      { label: "order", cell: (row) => h("code", { text: row.order_id }) },
      { label: "symbol", cell: (row) => text(row.symbol) },
      {
        label: "type",
        cell: (row) =>
          h("span", {
            class: "kind",
            data: { kind: String(row.order_type).startsWith("BUY") ? "buy" : "sell" },
            text: text(row.order_type).replace("_", " "),
          }),
      },
      { label: "lots", number: true, cell: (row) => figure(lots(row.order_quantity)) },
      { label: "open price", number: true, cell: (row) => figure(price(row.order_price)) },
      {
        label: "price now",
        number: true,
        title: "the quote where it would be closed, or filled: the bid of what is sold then, the ask of what is bought",
        cell: (row) => figure(prices.of(row)),
      },
      { label: "stop loss", number: true, cell: (row) => level(row.stop_loss) },
      { label: "take profit", number: true, cell: (row) => level(row.take_profit) },
      { label: "margin", number: true, lesser: true, cell: (row) => figure(usd(row.margin)) },
      { label: "commission", number: true, lesser: true, cell: (row) => figure(usd(row.commission)) },
      { label: "swap", number: true, lesser: true, cell: (row) => signed(row.swap) },
      { label: "status", cell: (row) => (row.unreadable ? figure("unknown") : text(row.order_status)) },
      { label: "copy of", lesser: true, cell: (row) => text(row.master_order_id) },
    ],
  });

  async function load() {
    const found = await asking.run((signal) =>
      ask("/api/orders", { parameters: { user_type: type, user_id: id, limit: MOST_ORDERS }, signal }),
    );
    if (found === undefined) return;
    orders = found.orders ?? [];
    table.update(orders);
    say(told, found.next === null ? "" : `the first ${count(found.orders.length)} of ${count(found.count)} are listed`);
  }

  return {
    asking,
    table,
    told,
    load,
    beat: () => orders.length > 0 && prices.beat(),
    drop() {
      asking.drop();
      prices.drop();
    },
  };
}

// ---- history

export function historyPart(type, id) {
  const asking = makeAsking();
  const older = h("button", { type: "button", text: "Older", hidden: true });
  let [entries, next] = [[], null];
  const table = makeTable({
    caption: "What happened to this account, newest first",
    id: "history",
    keyOf: (row) => row.id,
    empty: "Nothing has been recorded.",
    columns: [
      { label: "time", cell: (row) => time(row.ts_ms) },
      {
        label: "event",
        cell: (row) => (row.unreadable ? figure("unknown") : reasonWord(row.change ?? row.event) || "\u2013"),
      },
      { label: "order", cell: (row) => h("code", { text: text(row.order_id) }) },
      { label: "code", cell: (row) => reasonWord(row.code) || "\u2013" },
      {
        label: "balance",
        number: true,
        cell: (row) => (text(row.balance) === "\u2013" ? "\u2013" : figure(usd(row.balance))), // most changes say none
      },
      { label: "all of it", wide: true, cell: (row) => said(row) },
    ],
  });

  async function load(before = null) {
    const found = await asking.run((signal) =>
      ask(`/api/accounts/${pathOf(type, id)}/history`, { parameters: { before, limit: PAGE }, signal }),
    );
    if (found === undefined) return;
    const rows = found.entries ?? [];
    entries = before === null ? rows : [...entries, ...rows];
    next = found.next;
    older.hidden = next === null;
    table.update(entries);
  }

  older.addEventListener("click", () => load(next));
  return { asking, table, older, load: () => load(), drop: asking.drop };
}
