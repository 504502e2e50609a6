// The token of whoever is signed in. It lives in this tab's sessionStorage, never in an address or a cookie.

const NAME = "copyrisk.token";
let held = null;
const leaving = new Set();

function stored() {
  try {
    return sessionStorage.getItem(NAME);
  } catch {
    return null; // storage is closed to us: signed in until the page is left
  }
}

function store(token) {
  try {
    if (token === null) sessionStorage.removeItem(NAME);
    else sessionStorage.setItem(NAME, token);
  } catch {
    // see above
  }
}

export function token() {
  return held ?? stored();
}

/** Take the token out of the address bar, where it would be seen, copied and kept in the history. */
export function takeFromAddress() {
  const given = new URLSearchParams(location.hash.replace(/^#/, "")).get("token");
  if (given === null) return false;
  history.replaceState(null, "", `${location.pathname}#/`);
  if (token() !== null) return false; // a stranger's link must not make somebody else of who is signed in
  signIn(given);
  return true;
}

export function signIn(given) {
  held = given.trim() || null;
  store(held);
}

/** Forget the token; whoever is listening is told why. */
export function signOut(why = "") {
  held = null;
  store(null);
  for (const act of leaving) act(why);
}

export function onLeaving(act) {
  leaving.add(act);
}
