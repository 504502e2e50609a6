// Elements from plain values. What outsiders wrote only ever becomes text: nothing here, or anywhere, parses markup.

/** An element; `props`: `class`, `text`, `on` (listeners), `data` (dataset), anything else an attribute. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = String(value);
    else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

/** A panel with a heading; `aside` stands at the right of the heading. */
export function panel(title, { wide = "", aside = null, id = null } = {}, ...children) {
  const heading = h("h2", { text: title });
  return h(
    "section",
    { class: `panel ${wide}`.trim(), id, "aria-label": title },
    h("header", {}, heading, aside),
    ...children,
  );
}

/** Replace the text only if it differs, so that live regions say only what is new. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Replace all children. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}
