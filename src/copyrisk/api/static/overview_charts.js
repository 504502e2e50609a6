// The overview's charts: margin levels, how long ticks take, and copies.
import { colour, makeChart } from "./charts.js";
import { fill, h, panel } from "./dom.js";
import { count, duration, isKnown, numberOf, time } from "./format.js";
import { live } from "./live.js";

const CHART_SPAN_MS = 300_000;

// ---- the histogram

function binLabels(edges) {
  const inner = edges.slice(1).map((edge, at) => `${edges[at]}\u2013${edge}`);
  return [`below ${edges[0]}`, ...inner, `above ${edges.at(-1)}`];
}

export function spreadPart() {
  let shown = null;
  const chart = makeChart("Margin levels", () => {
    const labels = binLabels(shown?.edges_pct ?? []);
    const counts = shown?.counts ?? [];
    const text = counts.map((one) => (one ? count(one) : ""));
    const top = Math.max(10, ...counts);
    return {
      traces: [
        {
          type: "bar",
          orientation: "h",
          y: labels,
          x: counts.map((one) => (one ? one + 0.5 : null)),
          text,
          textposition: "outside",
          cliponaxis: false,
          marker: { color: colour("accent-soft"), line: { width: 0 } },
          textfont: { color: colour("text") },
          customdata: counts,
          hovertemplate: "%{customdata} accounts<extra>%{y} %</extra>",
        },
      ],
      layout: {
        hovermode: "closest",
        x: {
          type: "log",
          range: [Math.log10(0.7), Math.log10(top * 4)],
          showticklabels: false,
          showgrid: false,
          ticks: "",
        },
        y: { type: "category", autorange: "reversed", ticks: "", ticksuffix: " ", showgrid: false },
      },
      words: labels.map((label, at) => `${label} %: ${count(counts[at])} accounts`).join("; "),
    };
  });
  return {
    node: panel(
      "Margin levels",
      { wide: "figures third", aside: h("span", { class: "hint", text: "accounts by margin level in %, log scale" }) },
      chart.node,
    ),
    draw({ histogram }) {
      if (JSON.stringify(histogram) === JSON.stringify(shown)) return;
      shown = histogram;
      chart.redraw();
    },
    drop: chart.drop,
  };
}

// ---- latencies

function line(name, rows, value, colourName, dash = "solid") {
  return {
    type: "scatter",
    mode: "lines",
    name,
    x: rows.map((row) => new Date(row.ts_ms)),
    y: rows.map(value),
    connectgaps: false,
    line: { color: colour(colourName), width: 1.6, dash },
    hovertemplate: "%{y:.1f} ms",
  };
}

function latencyPart(title, hint, tracesOf, wordsOf) {
  const chart = makeChart(title, () => {
    const rows = live.latencies;
    const end = rows.at(-1)?.ts_ms ?? Date.now();
    return {
      traces: tracesOf(rows),
      layout: {
        legend: true,
        x: {
          type: "date",
          range: [new Date(end - CHART_SPAN_MS), new Date(end)],
          tickformat: "%H:%M",
          nticks: 6,
          showgrid: false,
        },
        y: { rangemode: "tozero", ticksuffix: " ms", nticks: 5 },
      },
      words: wordsOf(rows.at(-1)),
    };
  });
  return {
    node: panel(title, { wide: "figures third", aside: h("span", { class: "hint", text: hint }) }, chart.node),
    draw: chart.redraw,
    drop: chart.drop,
  };
}

export function tickPart() {
  return latencyPart(
    "Tick latency",
    "last 5 minutes",
    (rows) => [
      line("tick takes", rows, (row) => row.tick_ms, "accent"),
      line("period", rows, (row) => row.period_ms, "muted", "dot"),
    ],
    (last) => `The last tick took ${duration(last?.tick_ms)}; the period is ${duration(last?.period_ms)}.`,
  );
}

export function replicationPart() {
  const part = latencyPart(
    "Replication latency",
    "from the master's order to the stored copy",
    (rows) => [line("p50", rows, (row) => row.p50_ms, "accent"), line("p99", rows, (row) => row.p99_ms, "warning")],
    (last) => `p50 at most ${duration(last?.p50_ms)}, p99 at most ${duration(last?.p99_ms)}.`,
  );
  const told = h("p", { class: "hint" });
  part.node.append(told);
  return {
    ...part,
    draw({ replication }) {
      const last = replication?.last_event_ms;
      const speed =
        replication?.copies === 0
          ? ""
          : `; p50 at most ${duration(replication?.p50_ms)}, p99 at most ${duration(replication?.p99_ms)}`;
      fill(
        told,
        `Last minute: ${count(replication?.events)} orders, ${count(replication?.copies)} copies, ${count(replication?.skipped)} skipped${speed}; last order `,
        isKnown(last) && numberOf(last) > 0 ? time(last) : "unknown",
      );
      part.draw();
    },
  };
}
