// The list of chats: groups by age, search through all messages, a menu for each chat.

import { h, byId, icon, iconButton, openMenu, debounce } from './dom.js';
import { allMessages } from './store.js';

const HITS_MAX = 60;
const DAY = 86_400_000;

export class Sidebar {
  /** `actions`: open(id, message), rename(id, title), remove(id), exportChat(id), copyChat(id). */
  constructor(actions) {
    this.actions = actions;
    this.root = byId('chats');
    this.search = byId('search');
    this.chats = [];
    this.current = null;
    this.running = new Set();
    this.texts = null;
    this.find = debounce(() => this.showHits(), 120);
    this.search.addEventListener('input', () => this.find());
    this.search.addEventListener('blur', () => { if (!this.search.value) this.texts = null; });
    this.search.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        this.clearSearch();
        this.actions.leaveSearch();
      } else if (event.key === 'Enter') {
        event.preventDefault();
        this.find.flush();
        this.whenShown?.then(() => this.root.querySelector('.chat-link')?.click());
      }
    });
    for (const part of [this.root, this.search]) part.addEventListener('keydown', (event) => this.arrows(event));
  }

  arrows(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.classList.contains('rename')) return;
    const links = [...this.root.querySelectorAll('.chat-link')];
    const at = links.indexOf(document.activeElement);
    const to = at + step;
    if (to >= links.length || (at < 0 && step < 0)) return;
    event.preventDefault();
    (to < 0 ? this.search : links[to]).focus();
  }

  show(chats, current, running) {
    Object.assign(this, { chats, current, running });
    if (this.search.value.trim()) this.showHits();
    else this.showList();
  }

  clearSearch() {
    this.search.value = '';
    this.texts = null;
    this.showList();
  }

  showList() {
    const focused = document.activeElement?.closest?.('.chat-item')?.dataset.id;
    const midnight = new Date().setHours(0, 0, 0, 0);
    const groupOf = (time) => (time >= midnight ? 'Today' : time >= midnight - DAY ? 'Yesterday' : time >= midnight - 7 * DAY ? 'The last seven days' : 'Earlier');
    const groups = new Map();
    for (const chat of this.chats) {
      const name = groupOf(chat.updated);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(this.item(chat));
    }
    const parts = [...groups].map(([name, items], i) => h('section', {}, h('h2', { id: `group-${i}`, text: name }), h('ul', { 'aria-labelledby': `group-${i}` }, items)));
    this.root.replaceChildren(...(parts.length ? parts : [h('p', { class: 'faint empty', text: 'Your chats will be listed here.' })]));
    if (focused) this.root.querySelector(`[data-id="${CSS.escape(focused)}"] .chat-link`)?.focus();
  }

  item(chat, hit = null) {
    const current = chat.id === this.current;
    const link = h('a', { class: 'chat-link', href: `#/chat/${chat.id}`, 'aria-current': current ? 'page' : null },
      h('span', { class: 'chat-title' }, this.running.has(chat.id) ? h('span', { class: 'pulse', role: 'img', 'aria-label': 'An answer is being written' }) : null, chat.title),
      hit ? snippet(hit.text, hit.at, hit.length) : null);
    link.addEventListener('click', (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.actions.open(chat.id, hit?.message);
    });
    const more = iconButton('dots', `More for ${chat.title}`, () => openMenu(more, [
      { icon: 'pencil', label: 'Rename', run: () => this.rename(chat, row) },
      { icon: 'fork', label: 'Duplicate', run: () => this.actions.copyChat(chat.id) },
      { icon: 'out', label: 'Export', run: () => this.actions.exportChat(chat.id) },
      { icon: 'trash', label: 'Delete', danger: true, run: () => this.actions.remove(chat.id) },
    ]), { 'aria-haspopup': 'menu', 'aria-expanded': 'false' });
    link.addEventListener('dblclick', () => this.rename(chat, row));
    const row = h('li', { class: current ? 'chat-item current' : 'chat-item', data: { id: chat.id } }, link, more);
    return row;
  }

  rename(chat, row) {
    const field = h('input', { class: 'rename', 'aria-label': 'Title of the chat', value: chat.title, maxlength: '200' });
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      const title = field.value.trim();
      if (keep && title && title !== chat.title) this.actions.rename(chat.id, title);
      else this.show(this.chats, this.current, this.running);
      this.root.querySelector(`[data-id="${CSS.escape(chat.id)}"] .chat-link`)?.focus();
    };
    field.addEventListener('blur', () => end(true));
    field.addEventListener('keydown', (event) => {
      if (event.isComposing) return;
      if (event.key === 'Enter') end(true);
      else if (event.key === 'Escape') {
        event.stopPropagation();
        end(false);
      }
    });
    row.replaceChildren(field);
    field.focus();
    field.select();
  }

  showHits() {
    this.whenShown = this.hits();
  }

  async hits() {
    const query = this.search.value.trim().toLowerCase();
    if (!query) {
      this.showList();
      return;
    }
    this.texts ??= allMessages().then((nodes) => nodes.map((node) => ({ chat: node.chat, message: node.id, text: node.content, lower: node.content.toLowerCase() })));
    const texts = await this.texts;
    if (query !== this.search.value.trim().toLowerCase()) return;
    const inText = new Map();
    for (const one of texts) {
      if (inText.has(one.chat)) continue;
      const at = one.lower.indexOf(query);
      if (at >= 0) inText.set(one.chat, { ...one, at, length: query.length });
    }
    const found = this.chats.filter((chat) => inText.has(chat.id) || chat.title.toLowerCase().includes(query));
    const items = found.slice(0, HITS_MAX).map((chat) => this.item(chat, inText.get(chat.id)));
    const title = found.length ? `${found.length} found` : 'Nothing found';
    this.root.replaceChildren(h('section', {}, h('h2', { role: 'status', text: title }), h('ul', { 'aria-label': 'Found chats' }, items)));
  }

  /** The texts have changed, so the next search reads them again. */
  forget() {
    this.texts = null;
  }
}

function snippet(text, at, length) {
  const begin = Math.max(0, at - 24);
  return h('span', { class: 'snippet' }, `${begin > 0 ? '…' : ''}${text.slice(begin, at)}`, h('mark', { text: text.slice(at, at + length) }), text.slice(at + length, at + length + 60));
}

/** Puts the icons into buttons that index.html names. */
export function dressButtons() {
  const icons = { 'close-sidebar': 'close', 'new-chat': 'plus', 'open-app-settings': 'gear', 'open-sidebar': 'menu', 'open-chat-settings': 'sliders', 'new-chat-top': 'plus', jump: 'down', attach: 'clip', send: 'send' };
  for (const [id, name] of Object.entries(icons)) byId(id).prepend(icon(name));
  for (const button of document.querySelectorAll('dialog .close')) button.append(icon('close'));
}
