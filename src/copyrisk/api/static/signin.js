// Where somebody signs in, and why somebody was signed out.
import { h } from "./dom.js";

export function signInView({ why, enter }) {
  const field = h("input", {
    id: "token",
    type: "password",
    required: true,
    autocomplete: "off",
    spellcheck: "false",
    "aria-describedby": "token-why token-what",
  });
  const form = h(
    "form",
    {
      class: "signin",
      on: {
        submit(event) {
          event.preventDefault();
          if (field.value.trim()) enter(field.value);
        },
      },
    },
    h("p", { class: "brand", text: "copyrisk" }),
    h("p", { class: "bad", id: "token-why", role: "alert", text: why, hidden: !why }),
    h("label", { for: "token", text: "Access token" }),
    field,
    h("p", { class: "hint", id: "token-what", text: "It stays in this tab, and is gone when the tab is closed." }),
    h("button", { type: "submit", class: "main", text: "Sign in" }),
  );
  return { title: "Sign in", node: form, begin: () => field.focus() };
}
