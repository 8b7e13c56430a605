// Small things that the browser keeps between visits. Where it keeps nothing, they last as long as the page.

const held = new Map();

/** What was kept under a name, or null. */
export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return held.get(name) ?? null;
  }
}

/** Keeps a text under a name; null removes it. Returns whether it outlives the page. */
export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
    return true;
  } catch {
    held.set(name, value);
    return false;
  }
}
