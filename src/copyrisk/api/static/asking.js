// One question at a time: a newer one ends the older, and what is said of failures stands in one place.
import { h, say } from "./dom.js";
import { ApiRefusal } from "./http.js";

/** `{ node, run(question), drop }`: `question(signal)` asks; a refusal is shown in `node`, and `run` gives undefined. */
export function makeAsking() {
  const node = h("p", { class: "bad", role: "alert", hidden: true });
  let current = null;

  async function run(question) {
    current?.abort();
    const mine = new AbortController();
    current = mine;
    try {
      const answer = await question(mine.signal);
      if (mine.signal.aborted) return undefined;
      node.hidden = true;
      say(node, "");
      return answer;
    } catch (fault) {
      if (mine.signal.aborted) return undefined;
      say(
        node,
        fault instanceof ApiRefusal ? `${fault.message} (${fault.code})` : `the page has failed: ${fault.message}`,
      );
      node.hidden = false;
      return undefined;
    } finally {
      if (current === mine) current = null;
    }
  }

  return { node, run, drop: () => current?.abort(), isAsking: () => current !== null };
}
