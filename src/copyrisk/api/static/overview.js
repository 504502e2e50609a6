// The overview: how many accounts are in which state, who is closest to his thresholds, how fast everything is.
import { fill, h, panel, say } from "./dom.js";
import {
  STATES,
  TYPES,
  count,
  figure,
  isKnown,
  reasonWord,
  signed,
  stateWord,
  typeWord,
  usdRounded,
} from "./format.js";
import { live } from "./live.js";
import { cascadesPart, closestPart, newsPart } from "./overview_now.js";
import { replicationPart, spreadPart, tickPart } from "./overview_charts.js";
import { makeTable } from "./table.js";

export function overviewView() {
  const node = h("div", { class: "grid" });
  const parts = live.hasHouse ? houseParts() : [];
  let isHouse = live.hasHouse;
  const news = newsPart();

  function layOut() {
    const lonely = "This access may see some accounts only, not the house. Open one with the search field (/).";
    fill(node, isHouse ? houseNodes(parts, news) : [h("p", { class: "lonely", text: lonely }), news.node]);
  }

  function drawAll() {
    if (isHouse && !live.hasHouse) {
      isHouse = false;
      layOut();
    }
    if (isHouse && live.summary) parts.forEach((part) => part.draw(live.summary));
    news.draw();
  }

  layOut();
  return {
    title: "Overview",
    node,
    begin: drawAll,
    live(what) {
      if (what === "summary" || what === "state") drawAll();
      else news.draw();
    },
    drop: () => parts.forEach((part) => part.drop?.()),
  };
}

function houseParts() {
  return [
    statesPart(),
    cascadesPart(),
    closestPart(),
    typesPart(),
    unknownPart(),
    spreadPart(),
    tickPart(),
    replicationPart(),
  ];
}

/** What happens now stands first, beside the long table of accounts; how fast everything is comes last. */
function houseNodes(parts, news) {
  const [states, cascades, closest, ...others] = parts.map((part) => part.node);
  return [states, h("div", { class: "third stack" }, cascades, news.node), closest, ...others];
}

// ---- counts

function totalOf(byType, state) {
  return TYPES.map((type) => byType?.[type]?.[state])
    .filter(isKnown)
    .reduce((sum, one) => sum + one, 0);
}

function statesPart() {
  const tiles = new Map();
  const node = h("section", { class: "tiles figures", "aria-label": "The house" });
  const tile = (name, label, state) => {
    const value = h("dd", { text: "\u2013" });
    node.append(h("dl", { class: "tile", data: { state: state ?? "" } }, h("dt", { text: label }), value));
    tiles.set(name, value);
  };
  tile("total", "accounts");
  STATES.forEach((state) => tile(state, stateWord(state), state));
  tile("equity_usd", "equity, USD");
  tile("used_margin_usd", "used margin, USD");
  tile("open_pnl_usd", "open P&L, USD");
  return {
    node,
    draw({ accounts, totals }) {
      say(tiles.get("total"), count(accounts?.total));
      STATES.forEach((state) => say(tiles.get(state), accounts ? count(totalOf(accounts.by_type, state)) : "unknown"));
      for (const name of ["equity_usd", "used_margin_usd"]) say(tiles.get(name), usdRounded(totals?.[name]));
      fill(tiles.get("open_pnl_usd"), signed(totals?.open_pnl_usd, usdRounded));
    },
  };
}

function typesPart() {
  const table = makeTable({
    caption: "Accounts by type and state",
    keyOf: (row) => row.type,
    empty: "unknown",
    columns: [
      { label: "type", cell: (row) => typeWord(row.type) },
      ...STATES.map((state) => ({ label: stateWord(state), number: true, cell: (row) => figure(count(row[state])) })),
    ],
  });
  return {
    node: panel(
      "Accounts by type",
      { wide: "figures half", aside: h("span", { class: "hint", text: "totals in USD leave demo out" }) },
      table.node,
    ),
    draw: ({ accounts }) =>
      table.update(
        TYPES.filter((type) => accounts?.by_type?.[type]).map((type) => ({ type, ...accounts.by_type[type] })),
      ),
  };
}

// ---- unknown accounts

function unknownPart() {
  const table = makeTable({
    caption: "Why accounts are unknown",
    keyOf: (row) => row[0],
    empty: "Every account is known.",
    columns: [
      { label: "reason", cell: (row) => reasonWord(row[0]) },
      { label: "accounts", number: true, cell: (row) => figure(count(row[1])) },
    ],
  });
  return {
    node: panel("Unknown, and why", { wide: "figures half" }, table.node),
    draw: ({ unknown }) => table.update(unknown && Object.entries(unknown).sort((one, other) => other[1] - one[1])),
  };
}
