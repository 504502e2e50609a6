// The liquidation ladder as a chart: steps from the price that is now outward.
import { colour, makeChart } from "./charts.js";
import { count, digitsOf, isKnown, move, numberOf } from "./format.js";

/** From the highest price to the lowest. */
export const inOrder = (rungs) => [...rungs].sort((one, other) => numberOf(other.price) - numberOf(one.price));

/** The move with its sign. */
export const signedMove = (row) => (row.direction === "down" ? -1 : 1) * Math.abs(numberOf(row.move_pct));

/** Moves up to which a chart may reach, in percent; each of them is a rung. */
export const REACHES_PCT = [5, 10, 20, 50];

/** A chart of one symbol's accounts, or lots, by price. */
export function ladderChart(symbol, unit) {
  let [found, reachPct] = [null, REACHES_PCT[0]];
  const chart = makeChart(`${unit} of ${symbol} by price`, () => {
    const rungs = inOrder(found?.rungs ?? []).reverse();
    const middle = (numberOf(found?.bid) + numberOf(found?.ask)) / 2;
    const words = rungs.map(
      (row) =>
        `${move(signedMove(row))}: ${count(row.warning?.[unit])} warning, ${count(row.critical?.[unit])} critical`,
    );
    const near = rungs.filter((row) => Math.abs(numberOf(row.move_pct)) <= reachPct);
    if (!near.length || !Number.isFinite(middle)) return { traces: [], layout: {}, words: words.join("; ") };
    return {
      traces: ["warning", "critical"].flatMap((kind) => steps(near, middle, kind, unit)),
      layout: layoutOf(near, middle, unit, found.bid),
      words: words.join("; "),
    };
  });
  return {
    node: chart.node,
    drop: chart.drop,
    show(given) {
      found = given;
      chart.redraw();
    },
    reach(pct) {
      reachPct = pct;
      chart.redraw();
    },
  };
}

/** Between two rungs nobody knows where the accounts are: the farther one's count, which is the worse, is drawn. */
function steps(rungs, middle, kind, unit) {
  return ["down", "up"].map((direction, at) => {
    const rows = rungs.filter((row) => row.direction === direction);
    const points = rows.map((row) => [numberOf(row.price), row[kind]?.[unit] ?? null]);
    points.splice(direction === "down" ? points.length : 0, 0, [middle, 0]);
    return {
      type: "scatter",
      mode: "lines",
      name: kind,
      legendgroup: kind,
      showlegend: at === 0,
      x: points.map((one) => one[0]),
      y: points.map((one) => one[1]),
      line: { color: colour(kind), width: 1.8, shape: direction === "down" ? "hv" : "vh" },
      fill: "tozeroy",
      fillcolor: `${colour(kind)}22`,
      hovertemplate: `%{y} ${unit} at ${kind}`,
    };
  });
}

const LEAST = 4; // of the axis upwards: no halves of accounts

function layoutOf(rungs, middle, unit, bid) {
  const digits = isKnown(bid) ? Math.max(2, digitsOf(numberOf(bid))) : 5;
  const prices = [...rungs.map((row) => numberOf(row.price)), middle];
  const most = Math.max(
    LEAST,
    ...rungs.flatMap((row) => ["warning", "critical"].map((kind) => row[kind]?.[unit] ?? 0)),
  );
  return {
    legend: true,
    x: { title: "price", hoverformat: `.${digits}f`, range: [Math.min(...prices), Math.max(...prices)] },
    y: { title: unit, range: [0, most * 1.06] },
    shapes: [
      {
        type: "line",
        xref: "x",
        yref: "paper",
        x0: middle,
        x1: middle,
        y0: 0,
        y1: 1,
        line: { color: colour("muted"), width: 1, dash: "dot" },
      },
    ],
    annotations: [
      {
        x: middle,
        y: 1,
        yref: "paper",
        yanchor: "bottom",
        text: "now",
        showarrow: false,
        font: { size: 11, color: colour("muted") },
      },
    ],
  };
}
