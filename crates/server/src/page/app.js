// The page: brings the parts together, talks to the server about itself, and knows the keys.

import { byId, h, announce, toast } from './dom.js';
import { open as openStore, onOtherTab, saveChat } from './store.js';
import { path } from './tree.js';
import { download, exportChats, fileName, importChats, IMPORT_BYTES_MAX } from './transfer.js';
import { Transcript } from './transcript.js';
import { Composer } from './composer.js';
import { Sidebar, dressButtons } from './sidebar.js';
import { AppSettings, ChatSettings, confirmFirst, setUpTheme } from './settings.js';
import { Desk } from './desk.js';
import { recall, remember } from './prefs.js';
import * as api from './api.js';

const LAST_MODEL = 'unicorn-model';
const narrow = matchMedia('(max-width: 760px)');
const server = { models: [], props: new Map(), learning: null, timer: 0, tries: 0 };

const desk = new Desk({
  changed: () => showAll(),
  grown: (run) => run.chat === desk.chat && transcript.grow(run),
  // A model that was loaded for this request can tell more now.
  began: () => (desk.device && contextOf(server.models.find((one) => one.id === desk.model)) ? null : connect()),
  draft: (draft) => composer.set({ text: draft.text, files: draft.files ?? [] }),
  toBottom: () => transcript.toBottom(),
  find: (id) => transcript.find(id),
  go: (id) => go(id),
});

const transcript = new Transcript({
  edit: (node, text) => desk.edit(node, text),
  regenerate: (node) => desk.regenerate(node),
  goOn: (node) => desk.goOn(node),
  results: (node, values) => desk.results(node, values),
  version: (node) => desk.version(node),
  fork: (node) => desk.fork(node),
  stop: () => desk.run?.stop(),
  hurry: () => desk.run?.now(),
  askKey: (node) => {
    afterKey = node;
    openAppSettings(true);
  },
  focusPrompt: () => byId('prompt').focus(),
}, () => desk.saveOpen());

const composer = new Composer({
  send: (text, files) => desk.send(text, files),
  stop: () => desk.run?.stop(),
  editLast: () => transcript.editLast(),
  draft: (text, files) => desk.draft(text, files),
});

const sidebar = new Sidebar({
  open: (id, message) => {
    openDrawer(false);
    go(id, message);
  },
  rename: (id, title) => desk.rename(id, title),
  remove: (id) => desk.remove(id),
  copyChat: (id) => desk.copyChat(id),
  exportChat: async (id) => {
    const chat = await desk.fetch(id);
    download(fileName(chat.title), exportChats([chat]));
  },
  leaveSearch: () => {
    openDrawer(false);
    byId('prompt').focus();
  },
});

const chatSettings = new ChatSettings(() => {
  desk.saveOpen();
  composer.keep();
});

const appSettings = new AppSettings({
  exportAll: async () => {
    const chats = await Promise.all(desk.chats.map((chat) => desk.fetch(chat.id)));
    download(fileName(new Date().toISOString().slice(0, 10)), exportChats(chats));
  },
  importFile,
  deleteAll: async () => {
    if (!(await confirmFirst('Delete all chats?', `${desk.chats.length === 1 ? 'One chat is' : `${desk.chats.length} chats are`} removed from this browser. This cannot be undone.`, 'Delete all'))) return;
    await desk.removeAll();
    appSettings.showCount(0);
  },
  keyChanged: () => {
    connect();
    const node = afterKey;
    afterKey = null;
    if (node && api.apiKey() && node.state === 'error') desk.regenerate(node);
  },
});

// The answer that waits for a key.
let afterKey = null;

function showAll() {
  const { chat, run } = desk;
  // A new chat gets its address with its first message.
  if (desk.saved && idOfAddress() !== chat.id) history.replaceState(null, '', `#/chat/${chat.id}`);
  const model = chooseModel();
  const line = chat ? path(chat) : [];
  sidebar.forget();
  sidebar.show(desk.chats, desk.saved ? chat.id : null, new Set(desk.runs.keys()));
  transcript.show(chat, run);
  composer.setBusy(Boolean(run));
  byId('welcome').hidden = line.length > 0;
  byId('messages').hidden = line.length === 0;
  document.title = desk.saved ? `${chat.title} · Unicorn` : 'Unicorn';
  const last = line.findLast((node) => node.stats?.prompt !== undefined);
  composer.setContext(last ? last.stats.prompt + (last.stats.output ?? 0) : 0, contextOf(model));
}

const contextOf = (model) => model?.context ?? server.props.get(model?.id)?.context ?? null;

/** The model that answers next: that of the chat, else the last one chosen, else the first. */
function chooseModel() {
  const wanted = [desk.chat?.model, recall(LAST_MODEL)];
  const model = wanted.map((id) => server.models.find((one) => one.id === id)).find(Boolean) ?? server.models[0] ?? null;
  desk.model = model?.id ?? null;
  const select = byId('model');
  if (model && select.value !== model.id) select.value = model.id;
  const props = server.props.get(model?.id);
  desk.device = props?.device ?? null;
  byId('where').textContent = model ? [model.id, props?.device, contextOf(model) ? `${contextOf(model).toLocaleString()} tokens of context` : null].filter(Boolean).join(' · ') : '';
  if (model && !server.props.has(model.id)) server.learning = learn(model.id);
  return model;
}

async function learn(id) {
  server.props.set(id, null);
  try {
    server.props.set(id, await api.props(id));
  } catch {
    // Shown with the next answer, or when the page connects again.
    server.props.delete(id);
    return;
  }
  showAll();
}

/** Asks the server for its models, again and again until it answers. */
async function connect() {
  clearTimeout(server.timer);
  try {
    server.models = await api.models();
    server.props.clear();
    server.tries = 0;
    banner(server.models.length ? null : 'The server has no model.');
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    await tellWhy(error);
  }
  const names = server.models.map((model) => h('option', { value: model.id, text: model.id }));
  byId('model').replaceChildren(...(names.length ? names : [h('option', { value: '', text: 'No model yet' })]));
  byId('model').disabled = names.length < 2;
  showAll();
  await server.learning;
}

async function tellWhy(error) {
  const later = (ms) => { server.timer = setTimeout(connect, ms); };
  if (error.kind === 'key') banner(`${error.message}.`, ['Enter the key', () => openAppSettings(true)]);
  else if (error.kind === 'loading') {
    const state = await api.health().catch(() => null);
    banner(`Loading ${state?.what ?? 'the model'}…${state?.progress === null || !state ? '' : ` ${Math.round(state.progress * 100)} %`}`);
    later(1000);
  } else {
    server.tries += 1;
    banner([error.message, error.detail].filter(Boolean).join('. '), ['Try again', connect]);
    later(Math.min(30_000, 1500 * 2 ** server.tries));
  }
}

function banner(text, action) {
  const place = byId('banner');
  place.hidden = !text;
  const old = place.querySelector('span');
  if (text && old?.textContent === text) return;
  place.replaceChildren(...(text ? [h('span', { text }), action ? h('button', { type: 'button', class: 'link-button', text: action[0], on: { click: action[1] } }) : null].filter(Boolean) : []));
}

function openAppSettings(focusKey = false) {
  const model = server.models.find((one) => one.id === desk.model);
  appSettings.open({ chats: desk.chats.length, model, props: server.props.get(desk.model) }, focusKey);
}

async function importFile(file) {
  try {
    if (file.size > IMPORT_BYTES_MAX) throw new Error('It is too large');
    const chats = importChats(await file.text(), new Set(desk.chats.map((chat) => chat.id)));
    for (const chat of chats) await desk.keep(saveChat(chat, [...chat.nodes.values()]));
    await desk.refresh();
    appSettings.showCount(desk.chats.length);
    showAll();
    toast(chats.length === 1 ? 'One chat is imported.' : `${chats.length} chats are imported.`);
  } catch (error) {
    toast(`“${file.name.slice(0, 60)}” cannot be imported. ${error.message}.`);
  }
}

/** Shows a chat by its address, so that reload, back and forward work. */
async function go(id, message = null) {
  composer.keep.flush();
  const hash = id ? `#/chat/${id}` : '#/';
  if (location.hash !== hash) history.pushState(null, '', hash);
  await show(id, message);
  if (!narrow.matches && !message) byId('prompt').focus();
}

async function show(id, message = null) {
  if (id && (await desk.open(id, message))) return;
  if (id) {
    history.replaceState(null, '', '#/');
    toast('This chat is not in this browser.');
  }
  await desk.openNew();
}

const idOfAddress = () => /^#\/chat\/([\w-]{1,64})$/.exec(location.hash)?.[1] ?? null;

function openDrawer(on) {
  byId('app').classList.toggle('drawer', on);
  byId('scrim').hidden = !on;
  byId('sidebar').inert = narrow.matches && !on;
  document.querySelector('main').inert = narrow.matches && on;
  byId('open-sidebar').setAttribute('aria-expanded', String(on));
}

function keys(event) {
  const command = event.ctrlKey || event.metaKey;
  if (command && !event.shiftKey && event.key.toLowerCase() === 'k') {
    event.preventDefault();
    if (narrow.matches) openDrawer(true);
    sidebar.search.focus();
    sidebar.search.select();
  } else if (command && event.shiftKey && event.key.toLowerCase() === 'o') {
    event.preventDefault();
    go(null);
  } else if (event.key === 'Escape' && !event.defaultPrevented && !document.querySelector('dialog[open], :popover-open')) {
    if (byId('app').classList.contains('drawer')) {
      openDrawer(false);
      byId('open-sidebar').focus();
    } else desk.run?.stop();
  }
}

function wire() {
  byId('open-sidebar').addEventListener('click', () => {
    openDrawer(true);
    byId('close-sidebar').focus();
  });
  byId('close-sidebar').addEventListener('click', () => {
    openDrawer(false);
    byId('open-sidebar').focus();
  });
  byId('scrim').addEventListener('click', () => openDrawer(false));
  narrow.addEventListener('change', () => openDrawer(false));
  for (const id of ['new-chat', 'new-chat-top']) {
    byId(id).addEventListener('click', () => {
      openDrawer(false);
      go(null);
      byId('prompt').focus();
    });
  }
  byId('skip').addEventListener('click', (event) => {
    event.preventDefault();
    byId('prompt').focus();
  });
  byId('open-app-settings').addEventListener('click', () => openAppSettings());
  byId('open-chat-settings').addEventListener('click', () => chatSettings.open(desk.chat.settings, server.props.get(desk.model)?.defaults));
  byId('model').addEventListener('change', (event) => {
    remember(LAST_MODEL, event.target.value);
    desk.chat.model = event.target.value;
    desk.saveOpen();
    showAll();
    announce(`Model ${event.target.value}`);
  });
  for (const dialog of document.querySelectorAll('dialog')) dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  byId('search-key').textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? '⌘K' : 'Ctrl K';
  addEventListener('keydown', keys);
  addEventListener('popstate', () => {
    composer.keep.flush();
    show(idOfAddress());
  });
  // The seconds of waiting go on where nothing else happens.
  setInterval(() => desk.run?.phase.kind === 'sent' && transcript.grow(desk.run), 1000);
  const leave = () => {
    composer.keep.flush();
    transcript.place.flush();
    for (const run of desk.runs.values()) run.keep(true);
  };
  addEventListener('pagehide', leave);
  document.addEventListener('visibilitychange', () => document.visibilityState === 'hidden' && leave());
  addEventListener('online', connect);
  onOtherTab((id) => desk.changedElsewhere(id));
}

async function start() {
  dressButtons();
  setUpTheme();
  wire();
  openDrawer(false);
  const problem = await openStore();
  if (problem) toast(`Chats are lost when this page closes, since the browser cannot keep them: ${problem}.`);
  await desk.refresh();
  await show(idOfAddress());
  await connect();
}

start();
