// The two dialogs, the theme, and what of the settings goes into a request.

import { h, byId, icon, announce, toast, count } from './dom.js';
import { readSettings } from './transfer.js';
import { recall, remember } from './prefs.js';
import * as api from './api.js';

const DEFAULTS = 'unicorn-settings';
const THEME = 'unicorn-theme';
const STOPS_MAX = 4;

const FIELDS = [
  { name: 'temperature', label: 'Temperature', hint: 'Higher is more varied; 0 always takes the likeliest word', min: 0, max: 5, step: 0.05 },
  { name: 'top_p', label: 'Top p', hint: 'The likeliest words that make up this share', min: 0, max: 1, step: 0.01 },
  { name: 'top_k', label: 'Top k', hint: 'This many of the likeliest words; 0 is all', min: 0, max: 1_000_000, step: 1 },
  { name: 'min_p', label: 'Min p', hint: 'None less likely than this share of the likeliest', min: 0, max: 1, step: 0.01 },
  { name: 'max_tokens', label: 'Tokens at most', hint: 'How long an answer may be', min: 1, max: 10_000_000, step: 1 },
  { name: 'seed', label: 'Seed', hint: 'The same seed gives the same answer', min: 0, max: 2 ** 53 - 1, step: 1 },
];
// What the page itself decides about a request.
const OWN = ['messages', 'model', 'stream', 'stream_options', 'n'];

/** Settings that new chats begin with. */
export function newChatSettings() {
  try {
    return readSettings(JSON.parse(recall(DEFAULTS) ?? '{}'));
  } catch {
    return {};
  }
}

const stops = (settings) => String(settings.stop ?? '').split('\n').filter((line) => line);

function problemOf(field, value) {
  if (!Number.isFinite(value)) return 'Not a number';
  if (field.step === 1 && !Number.isInteger(value)) return 'A whole number, please';
  if (value < field.min || value > field.max) return field.max > 1000 ? `Not below ${field.min}` : `From ${field.min} to ${field.max}`;
  return '';
}

function extraOf(text) {
  if (!text?.trim()) return {};
  const value = JSON.parse(text);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error('It must be an object: {…}');
  const own = OWN.find((name) => Object.hasOwn(value, name));
  if (own) throw new Error(`"${own}" is set by this page`);
  return value;
}

/** The part of a request that the settings decide. Throws what is wrong with the further fields. */
export function requestSettings(settings) {
  const out = {};
  for (const field of FIELDS) if (typeof settings[field.name] === 'number' && !problemOf(field, settings[field.name])) out[field.name] = settings[field.name];
  const stop = stops(settings);
  if (stop.length) out.stop = stop.slice(0, STOPS_MAX);
  return { ...out, ...extraOf(settings.extra) };
}

/** The dialog of one chat. `changed()` is called after each change of `settings`. */
export class ChatSettings {
  constructor(changed) {
    this.changed = changed;
    this.dialog = byId('chat-settings');
    this.inputs = new Map(FIELDS.map((field) => [field, this.numberField(field)]));
    for (const name of ['system', 'stop', 'extra']) byId(`set-${name}`).addEventListener('input', (event) => this.takeText(name, event.target.value));
    byId('reset-settings').addEventListener('click', () => {
      for (const name of Object.keys(this.settings)) delete this.settings[name];
      this.fill();
      this.changed();
      announce('Reset to the server’s own values');
    });
    byId('keep-settings').addEventListener('click', () => {
      const kept = remember(DEFAULTS, JSON.stringify(this.settings));
      toast(kept ? 'New chats begin with these settings.' : 'New chats begin with these settings until this page closes: the browser keeps nothing.');
    });
  }

  numberField(field) {
    const id = `set-${field.name}`;
    const input = h('input', { id, type: 'text', inputmode: field.step === 1 ? 'numeric' : 'decimal', autocomplete: 'off', 'aria-describedby': `${id}-hint` });
    const hint = h('small', { id: `${id}-hint`, text: field.hint });
    input.addEventListener('input', () => {
      const text = input.value.trim().replace(',', '.');
      const problem = text ? problemOf(field, Number(text)) : '';
      this.tell(input, hint, problem, field.hint);
      if (problem) return;
      if (text) this.settings[field.name] = Number(text);
      else delete this.settings[field.name];
      this.changed();
    });
    byId('sampling').append(h('label', { class: 'field' }, h('span', { text: field.label }), input, hint));
    return { input, hint };
  }

  tell(input, place, problem, otherwise = '') {
    input.setAttribute('aria-invalid', String(Boolean(problem)));
    place.textContent = problem || otherwise;
    place.classList.toggle('problem', Boolean(problem));
  }

  takeText(name, value) {
    const input = byId(`set-${name}`);
    let problem = '';
    if (name === 'stop' && stops({ stop: value }).length > STOPS_MAX) problem = `${STOPS_MAX} at most`;
    if (name === 'extra') {
      try {
        extraOf(value);
      } catch (error) {
        problem = error.message;
      }
    }
    if (name !== 'system') this.tell(input, byId(`set-${name}-problem`), problem);
    if (problem) return;
    if (value) this.settings[name] = value;
    else delete this.settings[name];
    this.changed();
  }

  /** Opens for the settings of a chat; `defaults` are the server's, shown where nothing is set. */
  open(settings, defaults) {
    this.settings = settings;
    this.defaults = defaults ?? {};
    this.fill();
    this.dialog.showModal();
  }

  fill() {
    for (const [field, { input, hint }] of this.inputs) {
      const own = this.defaults[field.name];
      input.value = this.settings[field.name] ?? '';
      input.placeholder = typeof own === 'number' && own >= field.min ? String(Math.round(own * 1000) / 1000) : 'automatic';
      this.tell(input, hint, '', field.hint);
    }
    for (const name of ['system', 'stop', 'extra']) byId(`set-${name}`).value = this.settings[name] ?? '';
    for (const name of ['stop', 'extra']) this.tell(byId(`set-${name}`), byId(`set-${name}-problem`), '');
  }
}

/** The dialog of the page itself. `actions`: exportAll, importFile, deleteAll, keyChanged. */
export class AppSettings {
  constructor(actions) {
    this.dialog = byId('app-settings');
    const key = byId('api-key');
    const keep = byId('keep-key');
    const take = () => api.setKey(key.value, keep.checked);
    key.addEventListener('input', take);
    keep.addEventListener('change', take);
    this.dialog.addEventListener('close', () => {
      if (api.apiKey() !== this.keyBefore) actions.keyChanged();
    });
    byId('export-all').addEventListener('click', actions.exportAll);
    byId('delete-all').addEventListener('click', actions.deleteAll);
    const picker = byId('import-picker');
    byId('import').addEventListener('click', () => picker.click());
    picker.addEventListener('change', async () => {
      const [file] = picker.files;
      if (file) await actions.importFile(file);
      picker.value = '';
    });
    if (/Mac|iPhone|iPad/.test(navigator.platform)) for (const part of document.querySelectorAll('.mod')) part.textContent = '⌘';
  }

  open({ chats, model, props }, focusKey = false) {
    this.keyBefore = api.apiKey();
    byId('api-key').value = api.apiKey();
    byId('keep-key').checked = api.keyIsKept();
    this.showCount(chats);
    const facts = [['Address', location.origin], ['Model', model?.id], ['Device', props?.device], ['Placement', props?.placement], ['Context', model?.context ? `${count(model.context)} tokens` : null], ['Version', props?.version]];
    byId('server-facts').replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [h('dt', { text: name }), h('dd', { text: value })]));
    this.dialog.showModal();
    if (focusKey) byId('api-key').focus();
  }

  showCount(chats) {
    byId('chats-count').textContent = chats === 1 ? 'One chat in this browser.' : `${count(chats)} chats in this browser.`;
  }
}

/** Asks before something that cannot be undone. */
export function confirmFirst(title, text, yes) {
  const dialog = byId('confirm');
  byId('confirm-title').textContent = title;
  byId('confirm-text').textContent = text;
  byId('confirm-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }));
}

/** The switch between the system's colours, light and dark. */
export function setUpTheme() {
  const button = byId('theme');
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const order = ['auto', 'light', 'dark'];
  const names = { auto: 'as the system', light: 'light', dark: 'dark' };
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? 'auto';
    const isDark = theme === 'dark' || (theme === 'auto' && dark.matches);
    button.replaceChildren(icon({ auto: 'auto', light: 'sun', dark: 'moon' }[theme]));
    button.title = `Colours: ${names[theme]}`;
    button.setAttribute('aria-label', `Colours: ${names[theme]}. Switch to ${names[order[(order.indexOf(theme) + 1) % 3]]}`);
    document.querySelector('meta[name=theme-color]').content = isDark ? '#191816' : '#faf9f7';
  };
  button.addEventListener('click', () => {
    const next = order[(order.indexOf(document.documentElement.dataset.theme ?? 'auto') + 1) % 3];
    if (next === 'auto') {
      delete document.documentElement.dataset.theme;
      remember(THEME, null);
    } else remember(THEME, (document.documentElement.dataset.theme = next));
    show();
    announce(`Colours ${names[next]}`);
  });
  dark.addEventListener('change', show);
  show();
}
