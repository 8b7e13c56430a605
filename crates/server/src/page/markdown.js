// Markdown as models write it, made into elements. Raw HTML stays text, pictures become links, and nothing but http, https and
// mailto can be linked. Work is bounded: every scan ahead is short or remembered.

import { h, icon, copyText, announce } from './dom.js';
import { CodeView } from './highlight.js';
import { parseBlocks } from './blocks.js';
import { appendMath } from './math.js';

const LINK_LENGTH_MAX = 2000;
const NESTING_MAX = 24;
const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0', ndash: '–', mdash: '—', hellip: '…', copy: '©', times: '×', rarr: '→', larr: '←', deg: '°', middot: '·' };
const PLAIN = /(?:(?!https?:\/\/)[^\\`*_~[!<&$\n])+/y;
const BARE_LINK = /https?:\/\/[^\s<>"`]+/y;
const ANGLE_LINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BREAK_TAG = /<br ?\/?>/iy;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-z]{2,8}));/y;
const LETTER = /[\p{L}\p{N}]/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;

/** The address if it may be linked, else nothing. */
export function safeAddress(text) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(address, title) {
  return h('a', { href: address, title: title || address, target: '_blank', rel: 'noopener noreferrer nofollow', referrerpolicy: 'no-referrer' });
}

/** Appends to an element; texts that follow each other become one node. */
class Writer {
  constructor(parent) {
    this.parent = parent;
    this.text = '';
  }

  append(part) {
    if (typeof part === 'string') this.text += part;
    else {
      this.flush();
      this.parent.append(part);
    }
  }

  flush() {
    if (this.text) this.parent.append(document.createTextNode(this.text));
    this.text = '';
  }
}

/** Appends the inline parts of one paragraph to `element`. */
export function appendInline(element, source, depth = 0, inLink = false) {
  const parent = new Writer(element);
  const marks = [];
  const absent = new Map();
  let at = 0;
  const sticky = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(source);
  };
  while (at < source.length) {
    const c = source[at];
    const plain = sticky(PLAIN);
    if (plain) {
      parent.append(plain[0]);
      at += plain[0].length;
      continue;
    }
    let used = 0;
    if (c === '\n') used = lineBreak(parent);
    else if (c === '`') used = codeSpan(parent, source, at, absent);
    else if (c === '\\') used = escaped(parent, source, at, absent);
    else if (c === '$') used = dollarMath(parent, source, at, absent);
    else if (c === '*' || c === '_' || c === '~') used = mark(parent, marks, source, at);
    else if (c === '[' || (c === '!' && source[at + 1] === '[')) used = depth < NESTING_MAX && !inLink ? inlineLink(parent, source, at, depth) : 0;
    else if (c === '<') used = angle(parent, sticky, inLink);
    else if (c === '&') used = entity(parent, sticky);
    else if (c === 'h') used = inLink ? 0 : bareLink(parent, sticky);
    if (!used) {
      parent.append(c);
      used = 1;
    }
    at += used;
  }
  parent.flush();
  emphasize(marks);
  element.normalize();
}

// Models break lines where they want them broken, poems above all.
function lineBreak(parent) {
  parent.text = parent.text.trimEnd();
  parent.append(document.createElement('br'));
  return 1;
}

function codeSpan(parent, source, at, absent) {
  let run = 1;
  while (source[at + run] === '`') run += 1;
  const ticks = '`'.repeat(run);
  let end = absent.has(ticks) ? -1 : source.indexOf(ticks, at + run);
  while (end >= 0 && source[end + run] === '`') {
    let past = end + run;
    while (source[past] === '`') past += 1;
    end = source.indexOf(ticks, past);
  }
  if (end < 0) {
    absent.set(ticks, true);
    parent.append(ticks);
    return run;
  }
  let code = source.slice(at + run, end).replaceAll('\n', ' ');
  if (/^ .*[^ ].* $|^ [^ ] $/.test(code)) code = code.slice(1, -1);
  parent.append(h('code', { text: code }));
  return end + run - at;
}

function escaped(parent, source, at, absent) {
  const next = source[at + 1];
  if (next === '(' || next === '[') {
    const close = next === '(' ? '\\)' : '\\]';
    const end = absent.has(close) ? -1 : source.indexOf(close, at + 2);
    if (end < 0) absent.set(close, true);
    if (end > 0 && end - at < LINK_LENGTH_MAX) {
      appendMath(parent, source.slice(at + 2, end), next === '[', source.slice(at, end + 2));
      return end + 2 - at;
    }
  }
  if (next === '\n') {
    parent.append(document.createElement('br'));
    return 2;
  }
  if (next === undefined || !/[!-/:-@[-`{-~]/.test(next)) return 0;
  parent.append(next);
  return 2;
}

// As pandoc has it, so that prices stay prices: no space inside the dollars, no digit behind them.
function dollarMath(parent, source, at, absent) {
  const double = source[at + 1] === '$';
  const fence = double ? '$$' : '$';
  const begin = at + fence.length;
  if (absent.has(fence) || begin >= source.length || (!double && /\s/.test(source[begin]))) return 0;
  let end = source.indexOf(fence, begin);
  while (!double && end > 0 && (source[end - 1] === '\\' || /\s/.test(source[end - 1]))) end = source[end - 1] === '\\' ? source.indexOf(fence, end + 1) : -2;
  if (end === -1) absent.set(fence, true);
  if (end < 0 || end === begin || end - begin > LINK_LENGTH_MAX || (!double && /\d/.test(source[end + 1] ?? ''))) return 0;
  appendMath(parent, source.slice(begin, end), double, source.slice(at, end + fence.length));
  return end + fence.length - at;
}

function angle(parent, sticky, inLink) {
  const tag = sticky(BREAK_TAG);
  if (tag) {
    parent.append(document.createElement('br'));
    return tag[0].length;
  }
  const found = inLink ? null : sticky(ANGLE_LINK);
  const address = found && safeAddress(found[1]);
  if (!address) return 0;
  const anchor = link(address);
  anchor.append(found[1].replace(/^mailto:/, ''));
  parent.append(anchor);
  return found[0].length;
}

function entity(parent, sticky) {
  const found = sticky(ENTITY);
  if (!found) return 0;
  const code = found[1] ? Number(found[1]) : found[2] ? parseInt(found[2], 16) : 0;
  const known = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  const value = found[3] ? (Object.hasOwn(ENTITIES, found[3]) ? ENTITIES[found[3]] : null) : known ? String.fromCodePoint(code) : null;
  if (value === null) return 0;
  parent.append(value);
  return found[0].length;
}

function bareLink(parent, sticky) {
  const found = sticky(BARE_LINK);
  if (!found) return 0;
  let shown = found[0].slice(0, LINK_LENGTH_MAX).replace(/[.,;:!?'"*_~\]]+$/, '');
  const opens = shown.split('(').length;
  while (shown.endsWith(')') && shown.split(')').length > opens) shown = shown.slice(0, -1);
  const address = safeAddress(shown);
  if (!address) return 0;
  const anchor = link(address);
  anchor.append(shown);
  parent.append(anchor);
  return shown.length;
}

/** `[text](address "title")`; a picture is shown as a link too, since loading it would tell its server that it was read. */
function inlineLink(parent, source, at, depth) {
  const picture = source[at] === '!';
  const begin = at + (picture ? 2 : 1);
  const limit = Math.min(source.length, begin + LINK_LENGTH_MAX);
  let open = 1;
  let end = begin;
  for (; end < limit; end++) {
    const c = source[end];
    if (c === '\\') end += 1;
    else if (c === '[' && ++open > 8) return 0;
    else if (c === ']' && --open === 0) break;
  }
  if (open !== 0 || source[end + 1] !== '(') return 0;
  const rest = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"([^"]*)"|'([^']*)'))?\s*\)/.exec(source.slice(end + 1, end + 1 + LINK_LENGTH_MAX));
  if (!rest) return 0;
  const address = safeAddress((rest[1] ?? rest[2] ?? '').replace(/\\([!-/:-@[-`{-~])/g, '$1'));
  const label = source.slice(begin, end);
  const into = address ? link(address, rest[3] ?? rest[4]) : h('span', { class: 'dead-link', title: 'This address cannot be opened from here' });
  if (picture) {
    into.classList.add('picture');
    into.append(icon('file'));
  }
  appendInline(into, label || address || '', depth + 1, true);
  parent.append(into);
  return end + 1 + rest[0].length - at;
}

/** A run of `*`, `_` or `~` that may open or close; the rules are CommonMark's. */
function mark(parent, marks, source, at) {
  const c = source[at];
  let run = 1;
  while (source[at + run] === c) run += 1;
  const before = at > 0 ? source[at - 1] : ' ';
  const after = source[at + run] ?? ' ';
  const node = document.createTextNode(c.repeat(run));
  parent.append(node);
  if (c === '~' && run !== 2) return run;
  const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const inWord = c === '_' && LETTER.test(before) && LETTER.test(after);
  const open = left && !inWord && (c !== '_' || !right || PUNCTUATION.test(before));
  const close = right && !inWord && (c !== '_' || !left || PUNCTUATION.test(after));
  if (open || close) marks.push({ node, c, count: run, length: run, open, close });
  return run;
}

function emphasize(marks) {
  // Below which index no opener is left for a kind of closer: this keeps the whole linear.
  const floor = new Map();
  for (let i = 0; i < marks.length; i++) {
    const closer = marks[i];
    while (closer.close && closer.count > 0) {
      const key = `${closer.c}${closer.open}${closer.length % 3}`;
      const low = floor.get(key) ?? 0;
      let k = i - 1;
      for (; k >= low; k--) {
        const opener = marks[k];
        const thirds = (opener.close || closer.open) && (opener.length + closer.length) % 3 === 0 && (opener.length % 3 || closer.length % 3);
        if (opener.open && opener.count > 0 && opener.c === closer.c && !thirds) break;
      }
      if (k < low) {
        floor.set(key, i);
        break;
      }
      wrap(marks[k], closer);
      for (let between = k + 1; between < i; between++) marks[between].count = 0;
    }
  }
}

function wrap(opener, closer) {
  const strong = opener.count >= 2 && closer.count >= 2;
  const element = document.createElement(closer.c === '~' ? 'del' : strong ? 'strong' : 'em');
  let next = opener.node.nextSibling;
  while (next && next !== closer.node) {
    const following = next.nextSibling;
    element.append(next);
    next = following;
  }
  opener.node.after(element);
  for (const end of [opener, closer]) {
    end.count -= strong ? 2 : 1;
    end.node.data = end.c.repeat(end.count);
  }
}

/** The element of one block. */
function element(block) {
  switch (block.type) {
    case 'heading': return withInline(h(`h${block.level}`), block.text);
    case 'rule': return h('hr');
    case 'code': return codeBlock(block);
    case 'quote': return withBlocks(h('blockquote'), block.children);
    case 'list': return list(block);
    case 'table': return table(block);
    case 'math': {
      const box = h('div', { class: 'math-block', tabindex: '0' });
      appendMath(box, block.text, true, block.source);
      return box;
    }
    default: return withInline(h('p'), block.text);
  }
}

function withInline(parent, text) {
  appendInline(parent, text);
  return parent;
}

function withBlocks(parent, blocks) {
  parent.append(...blocks.map(element));
  return parent;
}

function list(block) {
  const out = h(block.ordered ? 'ol' : 'ul', { start: block.ordered && block.start !== 1 ? block.start : null });
  for (const item of block.items) {
    const li = h('li');
    if (item.checked !== null) {
      li.className = 'task';
      li.append(h('input', { type: 'checkbox', disabled: true, checked: item.checked, 'aria-label': item.checked ? 'done' : 'open' }));
    }
    for (const child of item.children) {
      if (child.type === 'paragraph' && !block.loose) {
        const part = h('span');
        appendInline(part, child.text);
        li.append(part);
      } else li.append(element(child));
    }
    out.append(li);
  }
  return out;
}

function table(block) {
  const row = (cells, tag) => h('tr', {}, block.align.map((align, i) => withInline(h(tag, { class: align ? `align-${align}` : null, scope: tag === 'th' ? 'col' : null }), cells[i] ?? '')));
  const body = block.rows.length ? h('tbody', {}, block.rows.map((cells) => row(cells, 'td'))) : null;
  return h('div', { class: 'table', tabindex: '0', role: 'region', 'aria-label': 'Table' }, h('table', {}, h('thead', {}, row(block.head, 'th')), body));
}

function codeBlock(block) {
  const code = h('code');
  const button = h('button', { type: 'button', class: 'copy-code', 'aria-label': 'Copy code' }, icon('copy'), h('span', { text: 'Copy' }));
  button.addEventListener('click', async () => {
    const say = (text) => {
      button.lastChild.textContent = text;
      announce(text);
    };
    await copyText(code.textContent).then(() => say('Copied'), () => say('Cannot copy'));
    setTimeout(() => say('Copy'), 1500);
  });
  const box = h('div', { class: 'code' }, h('div', { class: 'code-head' }, h('span', { text: block.language || 'text' }), button), h('pre', { tabindex: '0' }, code));
  box.view = new CodeView(code, block.language);
  box.view.set(block.text);
  return box;
}

/** Shows Markdown that grows. All blocks but the last two are final; of those two, only what changed is made anew. */
export class MarkdownView {
  constructor(root, onfinal = null) {
    this.root = root;
    this.onfinal = onfinal;
    this.reset();
  }

  reset() {
    this.root.replaceChildren();
    this.text = '';
    this.offset = 0;
    this.open = [];
  }

  update(raw) {
    const text = raw.replaceAll('\r\n', '\n');
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.reset();
    this.text = text;
    const tail = text.slice(this.offset);
    const blocks = parseBlocks(tail);
    const shown = blocks.map((block, i) => this.show(block, tail.slice(block.begin, block.end), this.open[i]));
    for (const old of this.open.slice(blocks.length)) old.element.remove();
    const final = Math.max(0, blocks.length - 2);
    if (final > 0) this.offset += blocks[final].begin;
    if (this.onfinal) for (const block of shown.slice(0, final)) this.onfinal(block.element);
    this.open = shown.slice(final);
  }

  show(block, source, old) {
    if (old && old.source === source) return old;
    const same = old && old.block.type === 'code' && block.type === 'code' && old.block.language === block.language;
    if (same) {
      old.element.view.set(block.text);
      return { block, source, element: old.element };
    }
    const fresh = { block, source, element: element(block) };
    if (old) old.element.replaceWith(fresh.element);
    else this.root.append(fresh.element);
    return fresh;
  }
}
