// The liquidation ladder as a chart: steps from the price that is now outward.
import { colour, makeChart } from "./charts.js";
import { count, digitsOf, isKnown, move, numberOf } from "./format.js";

/** From the highest price to the lowest. */
export const inOrder = (rungs) => [...rungs].sort((one, other) => numberOf(other.price) - numberOf(one.price));

/** The move with its sign. */
export const signedMove = (row) => (row.direction === "down" ? -1 : 1) * Math.abs(numberOf(row.move_pct));

/** A chart of one symbol's accounts, or lots, by price. */
export function ladderChart(symbol, unit) {
  let found = null;
  const chart = makeChart(`${unit} of ${symbol} by price`, () => {
    const rungs = [...inOrder(found?.rungs ?? [])].reverse();
    const middle = (numberOf(found?.bid) + numberOf(found?.ask)) / 2;
    const series = (kind, colourName) =>
      ["down", "up"].map((direction, at) => {
        const rows = rungs.filter((row) => row.direction === direction);
        const points = rows.map((row) => [numberOf(row.price), row[kind]?.[unit] ?? null]);
        if (Number.isFinite(middle)) points.splice(direction === "down" ? points.length : 0, 0, [middle, 0]);
        return {
          type: "scatter",
          mode: "lines",
          name: kind,
          legendgroup: kind,
          showlegend: at === 0,
          x: points.map((one) => one[0]),
          y: points.map((one) => one[1]),
          line: { color: colour(colourName), width: 1.8, shape: direction === "down" ? "vh" : "hv" },
          fill: "tozeroy",
          fillcolor: `${colour(colourName)}22`,
          hovertemplate: `%{y} ${unit} at ${kind}`,
        };
      });
    const digits = isKnown(found?.bid) ? Math.max(2, digitsOf(numberOf(found.bid))) : 5;
    return {
      traces: [...series("warning", "warning"), ...series("critical", "critical")],
      layout: {
        legend: true,
        x: { title: "price", hoverformat: `.${digits}f`, range: reach(rungs, middle) },
        y: { rangemode: "tozero", title: unit },
        shapes: Number.isFinite(middle)
          ? [
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
            ]
          : [],
        annotations: Number.isFinite(middle)
          ? [
              {
                x: middle,
                y: 1,
                yref: "paper",
                yanchor: "bottom",
                text: "now",
                showarrow: false,
                font: { size: 11, color: colour("muted") },
              },
            ]
          : [],
      },
      words: rungs
        .map(
          (row) =>
            `${move(signedMove(row))}: ${count(row.warning?.[unit])} warning, ${count(row.critical?.[unit])} critical`,
        )
        .join("; "),
    };
  });
  return {
    node: chart.node,
    drop: chart.drop,
    show(given) {
      found = given;
      chart.redraw();
    },
  };
}

const MOST_OF_IT = 0.97;

/** As far out as nearly everybody has been reached, and a rung further: the tails are flat. */
function reach(rungs, middle) {
  if (!rungs.length || !Number.isFinite(middle)) return undefined;
  const far = (direction) => {
    const rows = rungs
      .filter((row) => row.direction === direction)
      .sort((one, other) => Math.abs(one.move_pct) - Math.abs(other.move_pct));
    const most = MOST_OF_IT * (rows.at(-1)?.warning?.accounts ?? 0);
    const last = rows.findIndex((row) => row.warning?.accounts >= most);
    return numberOf(rows[Math.min(rows.length - 1, Math.max(last + 1, 4))]?.price);
  };
  const ends = [far("down"), far("up")];
  return ends.every(Number.isFinite) ? ends : undefined;
}
