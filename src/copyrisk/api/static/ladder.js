// The liquidation ladder: which move of a symbol brings how many accounts to warning and to critical.
import { makeAsking } from "./asking.js";
import { fill, h, panel } from "./dom.js";
import { accountHref, accountLink, count, figure, finer, isKnown, lots, move, price, stateMark } from "./format.js";
import { ask, pathOf } from "./http.js";
import { REACHES_PCT, inOrder, ladderChart, signedMove } from "./ladder_chart.js";
import { makeTable } from "./table.js";

const AGAIN_MS = 5_000;

export function ladderView({ rest }) {
  return rest[0] ? symbolView(rest[0]) : listView();
}

const ladderHref = (symbol) => `#/ladder/${encodeURIComponent(symbol)}`;

/** Ask now, and again each 5 s while the page is looked at. */
function repeating(asking, question, draw) {
  let nextAt = 0;
  async function turn() {
    nextAt = performance.now() + AGAIN_MS;
    const found = await asking.run(question);
    if (found !== undefined) draw(found);
    else asking.fell?.();
  }
  return { begin: turn, beat: () => !document.hidden && performance.now() >= nextAt && turn() };
}

// ---- all symbols

function crossing(side, kind) {
  return (row) => {
    const at = row[side]?.[kind];
    return at
      ? h("span", {}, h("b", { text: move(at.move_pct) }), ` ${price(at.price, finer(row))}`)
      : h("span", { class: "faint", text: "\u2013" });
  };
}

function listView() {
  const asking = makeAsking();
  const table = makeTable({
    caption: "The nearest crossing of each symbol",
    id: "symbols",
    keyOf: (row) => row.symbol,
    hrefOf: (row) => ladderHref(row.symbol),
    empty: "No account holds a position.",
    columns: [
      { label: "symbol", cell: (row) => h("a", { href: ladderHref(row.symbol), text: row.symbol }) },
      { label: "bid", number: true, cell: (row) => figure(price(row.bid, finer(row))) },
      { label: "ask", number: true, lesser: true, cell: (row) => figure(price(row.ask, finer(row))) },
      { label: "accounts", number: true, lesser: true, cell: (row) => figure(count(row.accounts)) },
      { label: "lots", number: true, lesser: true, cell: (row) => figure(lots(row.lots)) },
      { label: "falls: first warning", number: true, cell: crossing("down", "warning") },
      { label: "falls: first critical", number: true, cell: crossing("down", "critical") },
      { label: "rises: first warning", number: true, cell: crossing("up", "warning") },
      { label: "rises: first critical", number: true, cell: crossing("up", "critical") },
    ],
  });
  const node = panel(
    "Liquidation ladder",
    { wide: "full" },
    h("p", {
      class: "hint",
      text: "How far each symbol must move, everything else as it is, until the first account is warned or closed out.",
    }),
    asking.node,
    h("div", { class: "figures" }, table.node),
  );
  const again = repeating(
    asking,
    (signal) => ask("/api/risk/ladder", { signal }),
    (found) => table.update(found.symbols ?? []),
  );
  return { title: "Liquidation ladder", node, ...again, drop: asking.drop };
}

// ---- one symbol

function symbolView(symbol) {
  const asking = makeAsking();
  const head = h("dl", { class: "facts figures" });
  const charts = ["accounts", "lots"].map((unit) => ladderChart(symbol, unit));
  const reach = reachChoice((pct) => charts.forEach((chart) => chart.reach(pct)));
  const rungs = rungsTable();
  const nearest = nearestTable();
  const choose = symbolChoice(symbol);
  const node = h(
    "div",
    { class: "grid" },
    panel(symbol, { wide: "full", aside: choose.node }, asking.node, head),
    panel("Accounts by price", { wide: "figures half", aside: reach }, charts[0].node),
    panel("Lots by price", { wide: "figures half", aside: worse() }, charts[1].node),
    panel(
      "Rungs",
      {
        wide: "figures two-thirds",
        aside: h("span", { class: "hint", text: "cumulative from the current price outward" }),
      },
      rungs.node,
    ),
    panel("Nearest accounts", { wide: "figures third", aside: nearest.held }, nearest.node),
  );

  /** Figures that are not of now turn grey; why they are not stays readable. */
  const toggleOld = (isOld) =>
    [head, ...[...node.children].slice(1)].forEach((part) => part.classList.toggle("old", isOld));

  function draw(found) {
    toggleOld(false);
    drawFacts(head, found);
    charts.forEach((chart) => chart.show(found));
    rungs.update(withNow(found).map((row) => ({ ...row, bid: finer(found) })));
    nearest.update((found.nearest ?? []).map((row) => ({ ...row, bid: finer(found) })));
  }

  asking.fell = () => toggleOld(!asking.node.hidden);
  const again = repeating(asking, (signal) => ask(`/api/risk/ladder/${pathOf(symbol)}`, { signal }), draw);
  return {
    title: `Ladder of ${symbol}`,
    node,
    beat: again.beat,
    begin() {
      again.begin();
      choose.begin();
    },
    drop() {
      asking.drop();
      choose.drop();
      charts.forEach((chart) => chart.drop());
    },
  };
}

const worse = () => h("span", { class: "hint", text: "between two rungs: the farther one's count" });

let reachPct = REACHES_PCT[0]; // as it was chosen for the last symbol

/** How far the charts reach to either side. */
function reachChoice(chosen) {
  const buttons = REACHES_PCT.map((pct) =>
    h("button", { type: "button", text: `\u00b1${pct} %`, on: { click: () => choose(pct) } }),
  );
  function choose(pct) {
    reachPct = pct;
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(REACHES_PCT[place] === pct)));
    chosen(pct);
  }
  choose(reachPct);
  return h("div", { class: "quick", role: "group", "aria-label": "The charts reach" }, buttons);
}

function symbolChoice(symbol) {
  const asking = makeAsking();
  const select = h(
    "select",
    {
      id: "symbol",
      on: {
        change: () => {
          location.hash = ladderHref(select.value);
        },
      },
    },
    h("option", { value: symbol, text: symbol }),
  );
  return {
    node: h(
      "span",
      { class: "choice" },
      h("label", { for: "symbol", text: "Symbol" }),
      select,
      h("a", { href: "#/ladder", text: "all symbols" }),
    ),
    drop: asking.drop,
    async begin() {
      const found = await asking.run((signal) => ask("/api/risk/ladder", { signal }));
      const names = new Set([symbol, ...(found?.symbols ?? []).map((row) => row.symbol)]);
      fill(
        select,
        [...names].sort().map((name) => h("option", { value: name, text: name })),
      );
      select.value = symbol;
    },
  };
}

function drawFacts(head, found) {
  const facts = [
    ["bid", price(found.bid, finer(found))],
    ["ask", price(found.ask, finer(found))],
    ["accounts", count(found.accounts)],
    ["lots", lots(found.lots)],
    ["there already: warning", count(found.already?.warning)],
    ["there already: critical", count(found.already?.critical)],
    ["unknown accounts", count(found.unknown)],
    ["wait for a closed market", count(found.closed)],
  ];
  fill(
    head,
    facts.map(([label, value]) => h("div", {}, h("dt", { text: label }), h("dd", {}, figure(value)))),
  );
}

/** The rungs, and between those above and those below where the price is now. */
function withNow(found) {
  const rungs = inOrder(found.rungs ?? []);
  if (!rungs.length || !isKnown(found.bid)) return rungs;
  const above = rungs.filter((row) => row.direction === "up");
  return [
    ...above,
    { direction: "now", move_pct: 0, price: found.bid },
    ...rungs.filter((row) => row.direction === "down"),
  ];
}

function rungsTable() {
  const cell = (kind, unit) => (row) => {
    if (row.direction === "now") return "";
    const value = row[kind]?.[unit];
    return value === 0
      ? h("span", { class: "faint", text: "0" })
      : figure(unit === "lots" ? lots(value) : count(value), kind);
  };
  return makeTable({
    caption: "Accounts and lots that reach warning and critical, by move",
    id: "rungs",
    keyOf: (row) => `${row.direction}${row.move_pct}`,
    empty: "No rungs: the symbol has no price.",
    columns: [
      {
        label: "move",
        number: true,
        cell: (row) => (row.direction === "now" ? h("b", { text: "now" }) : move(signedMove(row))),
      },
      {
        label: "price",
        number: true,
        title: "the bid when it falls, the ask when it rises: positions that lose are closed there",
        cell: (row) => figure(price(row.price, row.bid)),
      },
      { label: "warning: accounts", number: true, cell: cell("warning", "accounts") },
      { label: "lots", number: true, cell: cell("warning", "lots") },
      { label: "critical: accounts", number: true, cell: cell("critical", "accounts") },
      { label: "lots", number: true, cell: cell("critical", "lots") },
    ],
  });
}

function nearestTable() {
  return makeTable({
    caption: "Accounts that a move of this symbol reaches first",
    keyOf: (row) => `${row.account} ${row.kind}`,
    hold: "append",
    hrefOf: (row) => accountHref(row.account),
    empty: "No account crosses by this symbol alone.",
    columns: [
      { label: "account", cell: (row) => accountLink(row.account) },
      { label: "reaches", cell: (row) => stateMark(row.kind) },
      { label: "move", number: true, cell: (row) => move(row.move_pct) },
      { label: "price", number: true, cell: (row) => figure(price(row.price, row.bid)) },
      { label: "lots", number: true, cell: (row) => figure(lots(row.lots)) },
    ],
  });
}
