// The overview: how many accounts are in which state, who is closest to his thresholds, how fast everything is.
import { fill, h, panel, say } from "./dom.js";
import {
  STATES,
  TYPES,
  accountHref,
  accountLink,
  count,
  figure,
  isKnown,
  numberOf,
  owned,
  percent,
  reasonWord,
  signed,
  stateMark,
  stateWord,
  time,
  typeWord,
  usd,
  usdRounded,
} from "./format.js";
import { live } from "./live.js";
import { replicationPart, spreadPart, tickPart } from "./overview_charts.js";
import { makeTable } from "./table.js";

const SHOWN_NEWS = 12;

export function overviewView() {
  const node = h("div", { class: "grid" });
  const parts = live.hasHouse ? houseParts() : [];
  let isHouse = live.hasHouse;
  const news = newsPart();

  function layOut() {
    fill(
      node,
      isHouse
        ? houseNodes(parts)
        : h("p", {
            class: "lonely",
            text: "This access may see some accounts only, not the house. Open one with the search field (/).",
          }),
      news.node,
    );
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
    closestPart(),
    spreadPart(),
    typesPart(),
    unknownPart(),
    tickPart(),
    replicationPart(),
    cascadesPart(),
  ];
}

/** Beside the long table of accounts a column of what is short. */
function houseNodes(parts) {
  const [states, closest, spread, types, unknown, ...others] = parts.map((part) => part.node);
  return [states, closest, h("div", { class: "third stack" }, spread, types, unknown), ...others];
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
      { wide: "figures", aside: h("span", { class: "hint", text: "totals in USD leave demo out" }) },
      table.node,
    ),
    draw: ({ accounts }) =>
      table.update(
        TYPES.filter((type) => accounts?.by_type?.[type]).map((type) => ({ type, ...accounts.by_type[type] })),
      ),
  };
}

// ---- the accounts closest to their thresholds

function distance(row) {
  const level = numberOf(row.margin_level_pct);
  const next =
    level > numberOf(row.warning_level_pct)
      ? ["warning", numberOf(row.warning_level_pct)]
      : ["critical", numberOf(row.critical_level_pct)];
  if (!Number.isFinite(level) || !Number.isFinite(next[1])) return figure("unknown");
  const points = level - next[1];
  const text = points >= 0 ? `${points.toFixed(2)} to ${next[0]}` : `${(-points).toFixed(2)} below ${next[0]}`;
  return h("span", { class: points < 0 ? "down" : null, text });
}

function closestPart() {
  const table = makeTable({
    caption: "Accounts closest to their thresholds",
    id: "closest",
    keyOf: (row) => row.account,
    hrefOf: (row) => accountHref(row.account),
    empty: "No account has a margin level.",
    columns: [
      { label: "account", cell: (row) => accountLink(row.account) },
      { label: "state", cell: (row) => stateMark(row.state) },
      { label: "level", number: true, cell: (row) => figure(percent(row.margin_level_pct)) },
      {
        label: "points",
        number: true,
        cell: distance,
        title: "percentage points of margin level to the next threshold",
      },
      {
        label: "warns, closes at",
        number: true,
        lesser: true,
        cell: (row) => `${plain(row.warning_level_pct)}, ${plain(row.critical_level_pct)} %`,
      },
      { label: "equity", number: true, cell: (row) => owned(row.equity_usd) },
      { label: "used margin", number: true, lesser: true, cell: (row) => figure(usd(row.used_margin_usd)) },
      { label: "open P&L", number: true, cell: (row) => signed(row.open_pnl_usd) },
    ],
  });
  return {
    node: panel(
      "Closest to their thresholds",
      { wide: "figures two-thirds tall", aside: h("span", { class: "hint", text: "USD" }) },
      table.node,
    ),
    draw: ({ closest }) => table.update(closest),
  };
}

const plain = (value) => (isKnown(value) ? String(Number(numberOf(value).toFixed(2))) : "unknown");

// ---- cascades, unknown accounts, news

function cascadesPart() {
  const bar = (row) => {
    const [done, all] = [numberOf(row.done) + (numberOf(row.failed) || 0), numberOf(row.followers)];
    return Number.isFinite(done) && all > 0
      ? h("progress", {
          max: all,
          value: Math.min(all, done),
          "aria-label": `${count(done)} of ${count(all)} followers at their end`,
        })
      : figure("unknown");
  };
  const table = makeTable({
    caption: "Cascades in progress",
    keyOf: (row) => row.id,
    empty: "No cascade is running.",
    hrefOf: (row) => `#/cascade/${encodeURIComponent(row.id)}`,
    columns: [
      {
        label: "master",
        cell: (row) => h("a", { href: `#/cascade/${encodeURIComponent(row.id)}`, text: row.master_id }),
      },
      { label: "progress", wide: true, cell: bar },
      { label: "done", number: true, cell: (row) => figure(`${count(row.done)} of ${count(row.followers)}`) },
      {
        label: "failed",
        number: true,
        cell: (row) => h("span", { class: row.failed > 0 ? "down" : null, text: count(row.failed) }),
      },
      { label: "state", lesser: true, cell: (row) => reasonWord(row.state) || "unknown" },
      { label: "begun", lesser: true, cell: (row) => time(row.begun_ms) },
    ],
  });
  return {
    node: panel("Cascades in progress", { wide: "figures half" }, table.node),
    draw: ({ cascades }) => table.update(cascades),
  };
}

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
    node: panel("Unknown, and why", { wide: "figures" }, table.node),
    draw: ({ unknown }) => table.update(unknown && Object.entries(unknown).sort((one, other) => other[1] - one[1])),
  };
}

function newsPart() {
  const table = makeTable({
    caption: "Latest warnings and closes",
    keyOf: (row) => row.key,
    empty: "None since this page was opened.",
    columns: [
      { label: "time", cell: ({ data }) => time(data.ts_ms ?? data.now_ms) },
      {
        label: "what",
        cell: ({ data, name }) =>
          h("span", { class: "kind", data: { kind: data.kind ?? name }, text: reasonWord(data.kind ?? name) }),
      },
      { label: "account", cell: ({ data }) => accountLink(data.account) },
      { label: "reason", wide: true, cell: ({ data }) => reasonWord(data.reason) || "\u2013" },
    ],
  });
  const all = h("a", { href: "#/audit", text: "all of them" });
  const node = panel("Warnings and closes", { wide: "half", aside: all }, table.node);
  return { node, draw: () => table.update(live.news.slice(0, SHOWN_NEWS)) };
}
