// Before the first paint: the chosen theme, else what the system prefers. Not a module, so that nothing flashes.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("copyrisk.theme");
  } catch {
    // storage is closed to us: the system's preference holds
  }
  const prefersLight = matchMedia("(prefers-color-scheme: light)").matches;
  document.documentElement.dataset.theme =
    chosen === "light" || chosen === "dark" ? chosen : prefersLight ? "light" : "dark";
})();
