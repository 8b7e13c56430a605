// The open conversation: which messages are shown, where it is scrolled, and what is drawn in which frame.

import { byId, debounce } from './dom.js';
import { families, path } from './tree.js';
import { AnswerView, ToolView, UserView } from './message.js';

// The last messages are made at once; those before when they come near.
const EAGER = 10;
const NEAR_BOTTOM_PX = 60;

export class Transcript {
  /** `actions` are what the buttons do; `onplace(chat)` is told when the reader has scrolled. */
  constructor(actions, onplace) {
    this.actions = actions;
    this.scroller = byId('scroller');
    this.root = byId('messages');
    this.jump = byId('jump');
    this.live = byId('live');
    this.views = [];
    this.families = new Map();
    this.chat = null;
    this.dirty = new Set();
    this.frame = 0;
    this.cost = 0;
    this.stuck = true;
    this.top = 0;
    this.observer = new IntersectionObserver((entries) => this.reveal(entries), { root: this.scroller, rootMargin: '1200px 0px' });
    this.place = debounce(() => this.rememberPlace(onplace), 300);
    this.scroller.addEventListener('scroll', () => this.scrolled(), { passive: true });
    this.jump.addEventListener('click', () => this.toBottom());
    new ResizeObserver(() => this.follow()).observe(this.root);
    new ResizeObserver(() => this.follow()).observe(this.scroller);
  }

  /** Shows a chat, or what has changed in it; `run` writes in it, if there is one. */
  show(chat, run) {
    const other = this.chat !== chat;
    this.place.flush();
    if (other) this.clear();
    this.chat = chat;
    const focus = this.heldFocus();
    this.families = chat ? families(chat) : new Map();
    const nodes = chat ? path(chat, this.families) : [];
    let same = 0;
    while (same < nodes.length && this.views[same]?.node === nodes[same]) same += 1;
    for (const view of this.views.splice(same)) {
      this.observer.unobserve(view.element);
      view.element.remove();
    }
    nodes.slice(same).forEach((node, i) => {
      const view = this.make(node);
      this.views.push(view);
      if (view instanceof AnswerView && same + i < nodes.length - EAGER) {
        view.postpone();
        this.observer.observe(view.element);
      }
      this.root.append(view.element);
    });
    this.update(run);
    this.giveFocus(focus);
    if (other) this.restorePlace();
    else this.follow();
  }

  clear() {
    this.observer.disconnect();
    this.views = [];
    this.root.replaceChildren();
    this.live.replaceChildren();
  }

  make(node) {
    if (node.role === 'user') return new UserView(node, this.actions);
    if (node.role === 'tool') return new ToolView(node);
    return new AnswerView(node, this.actions, (text) => this.say(text));
  }

  /** Which button of which message has the focus. */
  heldFocus() {
    const at = this.views.findIndex((view) => view.element.contains(document.activeElement));
    return at < 0 ? null : { at, label: document.activeElement.getAttribute('aria-label') };
  }

  /** Messages and their buttons are made anew; who steers by keys must not lose the place. */
  giveFocus(held) {
    if (!held || this.root.contains(document.activeElement)) return;
    const buttons = [...(this.views[held.at]?.element.querySelectorAll('button:not(:disabled)') ?? [])];
    const next = buttons.find((one) => one.getAttribute('aria-label') === held.label) ?? buttons.find((one) => one.closest('.versions'));
    if (next) next.focus();
    // On a phone the keyboard would come up.
    else if (matchMedia('(hover: hover)').matches) byId('prompt').focus();
  }

  /** All messages anew: buttons, versions and notes depend on what runs. */
  update(run) {
    const last = this.views[this.views.length - 1];
    for (const view of this.views) {
      if (view.element.classList.contains('editing')) continue;
      view.update({ run: run && run.node === view.node ? run : null, versions: this.families.get(view.node.parent), last: view === last, busy: Boolean(run) });
    }
  }

  /** A token has come: drawn in the next frame, or some frames later where drawing is slow. */
  grow(run) {
    this.dirty.add(run);
    if (this.frame) return;
    const draw = () => {
      const begin = performance.now();
      for (const one of this.dirty) this.views.find((view) => view.node === one.node)?.grow?.(one.phase.kind === 'ended' ? null : one);
      this.dirty.clear();
      this.frame = 0;
      this.follow();
      this.cost = performance.now() - begin;
    };
    // Never more than about a third of the time.
    this.frame = this.cost > 6 ? setTimeout(() => requestAnimationFrame(draw), this.cost * 2) : requestAnimationFrame(draw);
  }

  /** For readers of the screen: each finished paragraph once, not every token. */
  say(text) {
    const part = document.createElement('p');
    part.textContent = text.slice(0, 2000);
    this.live.append(part);
    while (this.live.children.length > 6) this.live.firstChild.remove();
  }

  reveal(entries) {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      this.observer.unobserve(entry.target);
      const view = this.views.find((one) => one.element === entry.target);
      if (!view) continue;
      view.lazy = false;
      view.grow(null);
    }
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
    // Text that grows must not look like a reader who scrolls up.
    if (scrollTop < this.top - 2) this.stuck = near;
    else if (near) this.stuck = true;
    this.top = scrollTop;
    this.jump.hidden = near || !this.views.length;
    this.place();
  }

  follow() {
    if (this.stuck) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.jump.hidden = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR_BOTTOM_PX;
  }

  toBottom() {
    this.stuck = true;
    this.follow();
    this.jump.hidden = true;
  }

  /** The first message in sight and how far it is scrolled, or nothing at the bottom. */
  rememberPlace(onplace) {
    if (!this.chat || !this.views.length) return;
    const line = this.scroller.getBoundingClientRect().top;
    const first = this.stuck ? null : this.views.find((view) => view.element.getBoundingClientRect().bottom > line);
    this.chat.place = first ? { id: first.node.id, offset: Math.round(first.element.getBoundingClientRect().top - line) } : null;
    onplace(this.chat);
  }

  restorePlace() {
    const { place } = this.chat ?? {};
    const view = place && this.views.find((one) => one.node.id === place.id);
    this.stuck = !view;
    this.top = 0;
    if (view) this.scrollTo(view, place.offset);
    this.follow();
  }

  scrollTo(view, offset) {
    const settle = () => {
      const line = this.scroller.getBoundingClientRect().top;
      this.scroller.scrollTop += view.element.getBoundingClientRect().top - line - offset;
    };
    settle();
    // Heights outside the window are guesses until they were seen once.
    requestAnimationFrame(() => this.views.includes(view) && (settle(), requestAnimationFrame(settle)));
  }

  /** Brings a message into sight, for the search. */
  find(id) {
    const view = this.views.find((one) => one.node.id === id);
    if (!view) return;
    this.stuck = false;
    this.scrollTo(view, 24);
    view.element.classList.add('found');
    setTimeout(() => view.element.classList.remove('found'), 2500);
  }

  /** Opens the last message of the person for an edit; tells whether there is one. */
  editLast() {
    const view = this.views.findLast((one) => one instanceof UserView);
    view?.edit();
    return Boolean(view);
  }
}
