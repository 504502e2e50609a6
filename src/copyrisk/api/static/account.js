// An account's page: its figures and orders as they change, and its history.
import { figuresPart } from "./account_figures.js";
import { historyPart, ordersPart } from "./account_orders.js";
import { h, panel, say } from "./dom.js";
import { TYPES } from "./format.js";
import { follow } from "./stream.js";

const GATHER_MS = 300;
const CONNECTION = {
  open: "following",
  connecting: "connecting",
  lost: "connection lost, trying again",
};

export function accountView({ rest }) {
  const [type, id] = rest;
  if (!TYPES.includes(type) || !id) {
    return { title: "Account", node: h("p", { class: "lonely", text: "There is no such account." }) };
  }
  const account = `${type}:${id}`;
  const figures = figuresPart(type, id);
  const orders = ordersPart(type, id);
  const history = historyPart(type, id);
  const state = h("span", { class: "state", role: "status", data: { state: "waiting" }, text: "connecting" });
  const node = h(
    "div",
    { class: "grid" },
    panel(account, { wide: "full figures", aside: state }, figures.asking.node, figures.node),
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
    [figures, orders, history].forEach((part) => part.load());
    stop = follow(["portfolios", "orders"], {
      accounts: [account],
      take(name, data) {
        if (name === "portfolios") figures.take(data);
        else if (name === "orders" || name === "gap") again();
      },
      tell(word, refusal) {
        state.dataset.state = word === "open" ? "live" : word === "connecting" ? "waiting" : "old";
        say(state, word === "refused" ? `not followed: ${refusal?.message ?? ""}` : CONNECTION[word]);
        node.classList.toggle("old", word === "lost" || word === "refused");
        if (word === "open") again();
      },
    });
  }

  return {
    title: account,
    node,
    begin,
    beat: orders.beat,
    live: figures.draw,
    drop() {
      stop?.();
      clearTimeout(gathering);
      [figures, orders, history].forEach((part) => part.drop());
    },
  };
}
