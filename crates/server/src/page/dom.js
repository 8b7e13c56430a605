// Small helpers that build the page. Text only ever becomes text nodes: nothing here, or anywhere in the page, parses HTML.

const SVG = 'http://www.w3.org/2000/svg';

/**
 * Makes an element. `props` holds attributes, `class`, `text`, `data` (dataset) and `on` (listeners); a property that is
 * `true` becomes an empty attribute, one that is `false`, `null` or `undefined` is left out.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === 'text') element.textContent = value;
    else if (name === 'data') Object.assign(element.dataset, value);
    else if (name === 'on') for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === 'value') element.value = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Finds the one element with an id; the page is wrong where it is missing. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element "${id}"`);
  return element;
}

// Strokes on a grid of 24, drawn for this page.
const ICONS = {
  plus: 'M12 5v14M5 12h14',
  search: 'M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13ZM15.5 15.5 20 20',
  menu: 'M4 7h16M4 12h16M4 17h10',
  sliders: 'M4 8h9M19 8h1M4 16h2M12 16h8M16 5.5v5M9 13.5v5',
  gear: 'M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6ZM12 3v3M12 18v3M3 12h3M18 12h3M5.6 5.6l2.2 2.2M16.2 16.2l2.2 2.2M18.4 5.6l-2.2 2.2M7.8 16.2l-2.2 2.2',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4',
  moon: 'M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5Z',
  auto: 'M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16ZM12 4v16M12 8h5.6M12 12h8M12 16h5.6',
  copy: 'M9 9h10v11H9zM5 15V4h10v2',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  pencil: 'M4 20l1-4L16 5l3 3L8 19zM14 7l3 3',
  refresh: 'M19 12a7 7 0 1 1-2-4.9L19 9M19 4v5h-5',
  fork: 'M7 4v16M7 14c0-4 10-2 10-7M14 7l3-3 3 3',
  trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5',
  stop: 'M8 8h8v8H8z',
  send: 'M12 19V6M6 11.5 12 5.5l6 6',
  clip: 'M19 11.5l-7 7a4.5 4.5 0 0 1-6.4-6.4l7.5-7.5a3 3 0 0 1 4.3 4.3l-7.3 7.2a1.5 1.5 0 0 1-2.2-2.1L14 7.8',
  left: 'M14.5 6 8.5 12l6 6',
  right: 'M9.5 6l6 6-6 6',
  down: 'M12 5v13M6.5 12.5 12 18l5.5-5.5',
  dots: 'M6 12h.01M12 12h.01M18 12h.01',
  out: 'M12 15V4M8 8l4-4 4 4M5 14v6h14v-6',
  in: 'M12 4v11M8 11l4 4 4-4M5 14v6h14v-6',
  close: 'M6 6l12 12M18 6 6 18',
  tool: 'M14.5 6.5a4 4 0 0 0-5 5L4 17l3 3 5.5-5.5a4 4 0 0 0 5-5L15 12l-3-3z',
  file: 'M7 3h7l4 4v14H7zM14 3v4h4',
  warn: 'M12 4 3 19.5h18zM12 10v4.5M12 17h.01',
};

/** An icon that readers of the screen skip: the button around it carries the label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const path = document.createElementNS(SVG, 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon alone, with its label for those who do not see it. */
export function iconButton(name, label, onclick, props = {}) {
  return h('button', { type: 'button', class: 'icon-button', title: label, 'aria-label': label, on: { click: onclick }, ...props }, icon(name));
}

/** Puts text on the clipboard; the API for it exists only on secure origins, which a server in the house is not. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = h('textarea', { class: 'hidden-copy', 'aria-hidden': 'true', value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  if (!copied) throw new Error('the browser refused to copy');
}

/** A button that copies, and says for a moment that it did. */
export function copyButton(label, text) {
  const button = iconButton('copy', label, async () => {
    try {
      await copyText(text());
      button.replaceChildren(icon('check'));
      announce('Copied');
    } catch (error) {
      toast(`Cannot copy: ${error.message}`);
      return;
    }
    setTimeout(() => button.replaceChildren(icon('copy')), 1500);
  });
  return button;
}

/** Says something to readers of the screen alone. */
export function announce(text) {
  byId('status').textContent = text;
}

/** A note at the foot of the page that goes away by itself; `action` is `{label, run}`. */
export function toast(text, action) {
  const note = h('div', { class: 'toast', role: 'status' }, h('span', { text }));
  if (action) {
    const run = () => {
      note.remove();
      action.run();
    };
    note.append(h('button', { type: 'button', class: 'link-button', text: action.label, on: { click: run } }));
  }
  note.append(iconButton('close', 'Dismiss', () => note.remove()));
  const shelf = byId('toasts');
  while (shelf.children.length > 2) shelf.firstChild.remove();
  shelf.append(note);
  setTimeout(() => note.remove(), action ? 10_000 : 7_000);
}

/** Opens a menu of `[{icon, label, run}]` under a button. Arrows move, Escape closes, and focus comes back. */
export function openMenu(button, entries) {
  const menu = h('div', { class: 'menu', role: 'menu', popover: 'auto' });
  for (const entry of entries) {
    const run = () => {
      menu.hidePopover();
      entry.run();
    };
    menu.append(h('button', { type: 'button', role: 'menuitem', class: entry.danger ? 'danger' : '', on: { click: run } }, icon(entry.icon), h('span', { text: entry.label })));
  }
  menu.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const items = [...menu.children];
    items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
  });
  menu.addEventListener('toggle', (event) => {
    button.setAttribute('aria-expanded', String(event.newState === 'open'));
    if (event.newState === 'open') return;
    const lost = menu.contains(document.activeElement) || document.activeElement === document.body;
    menu.remove();
    if (lost && button.isConnected) button.focus();
  });
  document.body.append(menu);
  menu.showPopover();
  const at = button.getBoundingClientRect();
  const size = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
  menu.style.top = `${at.bottom + size.height + 8 > innerHeight ? Math.max(8, at.top - size.height - 4) : at.bottom + 4}px`;
  menu.firstChild.focus();
}

/** `1,234`, `3.4 KB` and the like, in the reader's own language. */
export const count = (n) => n.toLocaleString();
export function bytes(n) {
  if (n < 1024) return `${n} bytes`;
  return n < 1024 * 1024 ? `${(n / 1024).toFixed(n < 10_240 ? 1 : 0)} KB` : `${(n / 1024 / 1024).toFixed(1)} MB`;
}

/** Calls `run` once, `ms` after the last call; `flush` calls it now if it is due. */
export function debounce(run, ms) {
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(later.flush, ms);
  };
  later.flush = () => {
    if (!timer) return undefined;
    clearTimeout(timer);
    timer = 0;
    return run();
  };
  return later;
}
