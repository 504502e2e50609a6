// Charts by the plotly library that the server has installed, in the page's own colours.
import { h, say } from "./dom.js";

let loading = null;

/** The library, fetched when the first chart needs it; null if the server has none. */
function library() {
  loading ??= new Promise((resolve) => {
    const script = h("script", { src: "/static/plotly.js" });
    script.addEventListener("load", () => resolve(globalThis.Plotly ?? globalThis.moduleName ?? null));
    script.addEventListener("error", () => {
      loading = null; // the next chart asks again
      resolve(null);
    });
    document.head.append(script);
  });
  return loading;
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function axis(given = {}) {
  const line = colour("line");
  return {
    gridcolor: line,
    zerolinecolor: line,
    linecolor: line,
    tickcolor: line,
    automargin: true,
    fixedrange: true,
    ...given,
    title: given.title ? { text: given.title, font: { size: 11 }, standoff: 6 } : undefined,
  };
}

function layoutOf({ x, y, legend = false, shapes = [], annotations = [], ...more }) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: colour("muted") },
    margin: { l: 8, r: 10, t: legend ? 26 : 8, b: 8 },
    showlegend: legend,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("text") } },
    hovermode: "x unified",
    dragmode: false,
    bargap: 0.12,
    autosize: true,
    xaxis: axis(x),
    yaxis: axis(y),
    shapes,
    annotations,
    ...more,
  };
}

const drawn = new Set();

/**
 * A chart: `draw()` gives `{ traces, layout, words }`, `words` says the same for who does not see it.
 * Returns `{ node, redraw, drop }`; it draws itself anew when the theme or its size changes.
 */
export function makeChart(label, draw) {
  const words = h("p", { class: "unseen" });
  const plot = h("div", { class: "plot", "aria-hidden": "true" });
  const node = h("figure", { role: "group", "aria-label": label }, plot, words);
  let frame = 0;

  async function now() {
    const plotly = await library();
    if (!plot.isConnected) return;
    const wanted = draw();
    say(words, wanted.words);
    if (plotly === null) {
      say(plot, "The chart library is not installed on the server.");
      return;
    }
    plot.classList.toggle("blank", !wanted.traces.length); // axes without figures would say something
    await plotly.react(plot, wanted.traces, layoutOf(wanted.layout), {
      displayModeBar: false,
      responsive: false,
      scrollZoom: false,
    });
    plot.dataset.drawn = "yes";
  }

  function redraw() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => now().catch((fault) => console.error("chart", fault)));
  }

  const sized = new ResizeObserver(redraw);
  sized.observe(plot);
  drawn.add(redraw);
  return {
    node,
    redraw,
    drop() {
      sized.disconnect();
      drawn.delete(redraw);
      cancelAnimationFrame(frame);
      globalThis.Plotly?.purge(plot);
    },
  };
}

export function redrawAll() {
  drawn.forEach((redraw) => redraw());
}
