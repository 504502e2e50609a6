// An account's page: its figures and orders as they change, and its history.
import { makeAsking } from "./asking.js";
import { fill, h, panel, say } from "./dom.js";
import { said } from "./entries.js";
import { TYPES, count, figure, isKnown, lots, owned, percent, price, reasonWord, signed, time, usd } from "./format.js";
import { ask, pathOf } from "./http.js";
import { follow } from "./stream.js";
import { makeTable } from "./table.js";

const GATHER_MS = 300;
const PAGE = 50;
const MOST_ORDERS = 500;

export function accountView({ rest }) {
  const [type, id] = rest;
  if (!TYPES.includes(type) || !id) {
    return { title: "Account", node: h("p", { class: "lonely", text: "There is no such account." }) };
  }
  const account = `${type}:${id}`;
  const portfolio = portfolioPart(type, id);
  const orders = ordersPart(type, id);
  const history = historyPart(type, id);
  const state = h("span", { class: "state", role: "status", data: { state: "waiting" }, text: "connecting" });
  const node = h(
    "div",
    { class: "grid" },
    panel(account, { wide: "full figures", aside: state }, portfolio.asking.node, portfolio.node),
    panel("Positions and orders", { wide: "full figures" }, orders.asking.node, orders.table.node, orders.told),
    panel(
      "History",
      { wide: "full" },
      history.asking.node,
      history.table.node,
      h("div", { class: "row" }, history.older),
    ),
  );
  let stop = null;
  let gathering = 0;

  function again() {
    clearTimeout(gathering);
    gathering = setTimeout(() => {
      orders.load();
      history.load();
    }, GATHER_MS);
  }

  function begin() {
    portfolio.load();
    orders.load();
    history.load();
    stop = follow(["portfolios", "orders"], {
      accounts: [account],
      take(name, data) {
        if (name === "portfolios") portfolio.draw(data);
        else if (name === "orders" || name === "gap") again();
      },
      tell(word, refusal) {
        state.dataset.state = word === "open" ? "live" : word === "connecting" ? "waiting" : "old";
        say(
          state,
          {
            open: "live",
            connecting: "connecting",
            lost: "connection lost, trying again",
            refused: `not live: ${refusal?.message ?? ""}`,
          }[word],
        );
        node.classList.toggle("old", word === "lost" || word === "refused");
        if (word === "open") again();
      },
    });
  }

  return {
    title: account,
    node,
    begin,
    drop() {
      stop?.();
      clearTimeout(gathering);
      [portfolio, orders, history].forEach((part) => part.asking.drop());
    },
  };
}

// ---- figures

const FACTS = [
  ["equity, USD", (row) => owned(row.equity_usd)],
  ["balance, USD", (row) => owned(row.balance_usd)],
  ["open P&L, USD", (row) => signed(row.open_pnl_usd)],
  ["free margin, USD", (row) => owned(row.free_margin_usd)],
  ["used margin, USD", (row) => figure(usd(row.used_margin_usd))],
  ["margin level", (row) => (row.used_margin_usd === 0 ? "no margin" : figure(percent(row.margin_level_pct)))],
];
const WHY_NOT = {
  absent: "There is no portfolio of this account.",
  stale: "The daemon does not tick: what is known of this account is not of now.",
  unavailable: "The store is away: nothing is known of this account.",
  unknown: "The figures are unknown",
};

function portfolioPart(type, id) {
  const asking = makeAsking();
  const node = h("div", {});
  let isFollowed = false;

  function draw(row) {
    const state = row?.state ?? "unknown";
    const reasons = row?.degraded_fields ?? [];
    const why =
      state === "unknown" && reasons.length
        ? `${WHY_NOT.unknown}: ${reasons.map(reasonWord).join(", ")}.`
        : (WHY_NOT[state] ?? state);
    fill(
      node,
      state === "known" || row === null ? null : h("p", { class: "note", text: why }),
      h(
        "dl",
        { class: "facts" },
        FACTS.map(([label, cell]) =>
          h("div", {}, h("dt", { text: label }), h("dd", {}, row ? cell(row) : figure("\u2013"))),
        ),
        h("div", {}, h("dt", { text: "figures of" }), h("dd", {}, row ? time(row.valued_ts_ms) : "\u2013")),
      ),
    );
  }

  async function load() {
    const found = await asking.run((signal) => ask(`/api/portfolios/${pathOf(type, id)}`, { signal }));
    if (found !== undefined && !isFollowed) draw(asStreamed(found));
  }

  draw(null);
  return {
    node,
    asking,
    load,
    draw: (row) => {
      isFollowed = true; // what the stream says is newer than any answer
      draw(row);
    },
  };
}

/** What `/api/portfolios` answers, in the words of the stream. */
function asStreamed(found) {
  return {
    state: found.state === "never" ? "absent" : found.state,
    degraded_fields: found.degraded_fields,
    valued_ts_ms: found.valued_ts,
    equity_usd: found.equity,
    balance_usd: found.balance,
    open_pnl_usd: found.open_pnl,
    free_margin_usd: found.free_margin,
    used_margin_usd: found.used_margin,
    margin_level_pct: found.margin_level,
  };
}

// ---- orders

const text = (value) => (value === null || value === undefined || value === "" ? "\u2013" : String(value));
const level = (value) => (isKnown(value) && Number(value) !== 0 ? price(value) : "\u2013");

function ordersPart(type, id) {
  const asking = makeAsking();
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
      { label: "price", number: true, cell: (row) => figure(price(row.order_price)) },
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
    table.update(found.orders ?? []);
    say(told, found.next === null ? "" : `the first ${count(found.orders.length)} of ${count(found.count)} are listed`);
  }

  return { asking, table, told, load };
}

// ---- history

function historyPart(type, id) {
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
  return { asking, table, older, load: () => load() };
}
