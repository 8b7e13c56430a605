// The chats and what is done with them: open, send, edit, answer again, fork. Each chat has at most one answer being written.

import * as store from './store.js';
import { add, chooseTo, fork, newChat, path, requestMessages, titleFrom } from './tree.js';
import { newChatSettings, requestSettings } from './settings.js';
import { Run } from './run.js';
import { announce, toast } from './dom.js';

const NEW = 'new';
const COMPLAIN_EVERY_MS = 30_000;

export class Desk {
  /** `ui`: changed() after any change, grown(run) with each token, began() with the first one, draft({text, files}) to show one, place to show a chat. */
  constructor(ui) {
    this.ui = ui;
    this.chats = [];
    this.chat = null;
    this.runs = new Map();
    // What is asked last wins, should two chats be opened in one breath.
    this.opening = 0;
    this.model = null;
    this.device = null;
    this.complained = 0;
  }

  get run() {
    return this.chat ? this.runs.get(this.chat.id) : undefined;
  }

  /** Whether the open chat is in the database; a new one gets there with its first message. */
  get saved() {
    return this.chats.some((chat) => chat.id === this.chat?.id);
  }

  get draftKey() {
    return this.saved ? this.chat.id : NEW;
  }

  async refresh() {
    this.chats = await store.listChats();
  }

  /** Says what the browser could not keep. */
  async keep(promise) {
    try {
      await promise;
    } catch (error) {
      const full = error?.name === 'QuotaExceededError';
      // An answer is written down several times a second.
      if (Date.now() - this.complained < COMPLAIN_EVERY_MS) return;
      this.complained = Date.now();
      toast(full ? 'The browser’s storage is full: this chat is no longer kept. Export and delete some chats.' : `The browser could not keep this: ${error?.message ?? error}`);
    }
  }

  async openNew() {
    const turn = ++this.opening;
    const draft = await store.loadDraft(NEW);
    if (turn !== this.opening) return;
    this.chat = newChat(draft.settings ?? newChatSettings(), null);
    this.ui.draft(draft);
    this.ui.changed();
  }

  /** Opens a chat, at a message where one is named. Returns whether there is such a chat. */
  async open(id, message = null) {
    const turn = ++this.opening;
    if (this.chat?.id !== id) {
      const chat = this.runs.get(id)?.chat ?? (await store.loadChat(id));
      if (!chat) return false;
      await this.endLostRuns(chat);
      const draft = await store.loadDraft(id);
      if (turn !== this.opening) return true;
      this.chat = chat;
      this.ui.draft(draft);
    }
    if (message) {
      chooseTo(this.chat, message);
      this.keep(store.saveChat(this.chat));
    }
    this.ui.changed();
    if (message) this.ui.find(message);
    return true;
  }

  /** An answer that nobody writes any more was cut off, by a reload or a crash. */
  async endLostRuns(chat) {
    const lost = [...chat.nodes.values()].filter((node) => node.state === 'running' && !this.runs.has(chat.id));
    if (!lost.length) return;
    const held = new Set(navigator.locks ? (await navigator.locks.query()).held.map((lock) => lock.name) : []);
    const ended = lost.filter((node) => !held.has(lockOf(node)));
    for (const node of ended) node.state = 'partial';
    if (ended.length) await this.keep(store.saveChat(chat, ended));
  }

  draft(text, files) {
    const draft = { chat: this.draftKey, text, files };
    if (draft.chat === NEW && this.chat) draft.settings = this.chat.settings;
    return this.keep(store.saveDraft(draft));
  }

  async send(text, files) {
    const { chat } = this;
    if (this.runs.has(chat.id)) return;
    const line = path(chat);
    const fields = { role: 'user', content: text };
    if (files.length) fields.files = files.map(({ name, text: body }) => ({ name, text: body }));
    const question = add(chat, line[line.length - 1]?.id ?? null, fields);
    if (!line.length && !chat.named) chat.title = titleFrom(text || files[0].name);
    await this.answer(chat, question, [question]);
  }

  /** Another version of a message, with an answer of its own. */
  async edit(node, text) {
    const { chat } = this;
    if (this.runs.has(chat.id)) return;
    const fields = { role: 'user', content: text.trim() };
    if (node.files) fields.files = node.files;
    const question = add(chat, node.parent, fields);
    if (node.parent === null && !chat.named) chat.title = titleFrom(text);
    await this.answer(chat, question, [question]);
  }

  /** Another answer to the same message; one that failed before its first word is replaced. */
  async regenerate(node) {
    const { chat } = this;
    if (this.runs.has(chat.id)) return;
    if (node.state === 'error') {
      for (const name of ['error', 'stats', 'finish', 'reasoning', 'thought', 'calls']) delete node[name];
      await this.write(chat, node, [], false);
    } else await this.answer(chat, chat.nodes.get(node.parent), []);
  }

  /** Lets the model go on with an answer that ended too early. */
  async goOn(node) {
    if (this.runs.has(this.chat.id)) return;
    for (const name of ['error', 'finish']) delete node[name];
    await this.write(this.chat, node, [], true);
  }

  /** What the tools gave, in the order of the calls. */
  async results(node, values) {
    const { chat } = this;
    if (this.runs.has(chat.id)) return;
    const added = [];
    let parent = node;
    node.calls.forEach((call, i) => {
      parent = add(chat, parent.id, { role: 'tool', call: call.id, name: call.name, content: values[i] ?? '' });
      added.push(parent);
    });
    await this.answer(chat, parent, added);
  }

  answer(chat, question, added) {
    const node = add(chat, question.id, { role: 'assistant', state: 'running' });
    return this.write(chat, node, added, false);
  }

  async write(chat, node, added, goOn) {
    chat.updated = Date.now();
    chat.model = this.model ?? chat.model;
    let body;
    try {
      body = { model: chat.model ?? '', messages: requestMessages(chat, node, goOn), stream: true, stream_options: { include_usage: true }, ...requestSettings(chat.settings) };
    } catch (error) {
      node.state = 'error';
      node.error = { kind: 'request', title: 'The further fields in the settings of this chat are wrong', detail: error.message };
    }
    // With both, servers go on with the last message where they would else begin a new one.
    if (body && goOn) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    let learning = null;
    const run = body && new Run({ chat, node, body, save: (one) => this.saveRun(one), onchange: (one) => this.ui.grown(one), onbegin: () => { learning = this.ui.began(); }, device: () => this.device });
    if (run) {
      node.state = 'running';
      this.runs.set(chat.id, run);
    }
    await this.keep(store.saveChat(chat, [...added, node]));
    await this.refresh();
    this.ui.changed();
    if (!run) return;
    this.ui.toBottom();
    await locked(lockOf(node), () => run.start());
    if (this.runs.get(chat.id) === run) this.runs.delete(chat.id);
    if (run.dead) return;
    announce({ done: 'The answer is complete', stopped: 'Stopped' }[node.state] ?? node.error?.title ?? 'The answer was cut off');
    await this.refresh();
    this.ui.changed();
    await learning;
    if (!node.stats || node.stats.device || !this.device || this.chat !== chat) return;
    // A short answer may end before the device is known.
    node.stats.device = this.device;
    await this.keep(store.saveChat(chat, [node]));
    this.ui.changed();
  }

  saveRun(run) {
    if (run.dead) return undefined;
    return this.keep(run.phase.kind === 'ended' ? store.saveChat(run.chat, [run.node]) : store.saveNode(run.node));
  }

  version(node) {
    chooseTo(this.chat, node.id);
    this.keep(store.saveChat(this.chat));
    this.ui.changed();
  }

  async fork(node) {
    await this.adopt(fork(this.chat, node));
    toast('A new chat goes on from that message.');
  }

  async copyChat(id) {
    const chat = await this.fetch(id);
    const line = path(chat);
    if (line.length) await this.adopt(fork(chat, line[line.length - 1]));
  }

  async adopt(chat) {
    await this.keep(store.saveChat(chat, [...chat.nodes.values()]));
    await this.refresh();
    this.ui.go(chat.id);
  }

  /** A chat with its messages: the object in use, where there is one. */
  async fetch(id) {
    if (this.chat?.id === id) return this.chat;
    return this.runs.get(id)?.chat ?? store.loadChat(id);
  }

  async rename(id, title) {
    const chat = await this.fetch(id);
    Object.assign(chat, { title, named: true });
    await this.keep(store.saveChat(chat));
    await this.refresh();
    this.ui.changed();
  }

  /** Deletes at once, and can take it back for a while. */
  async remove(id) {
    const chat = await this.fetch(id);
    this.endRun(id);
    await this.keep(store.deleteChat(chat));
    await this.refresh();
    if (this.chat?.id === id) this.ui.go(null);
    else this.ui.changed();
    const back = async () => {
      for (const node of chat.nodes.values()) if (node.state === 'running') node.state = 'partial';
      await this.adopt(chat);
    };
    toast(`“${chat.title.slice(0, 40)}” is deleted.`, { label: 'Undo', run: back });
  }

  endRun(id) {
    const run = this.runs.get(id);
    if (!run) return;
    run.dead = true;
    run.stop();
    this.runs.delete(id);
  }

  async removeAll() {
    for (const id of [...this.runs.keys()]) this.endRun(id);
    await this.keep(store.deleteAll());
    await this.refresh();
    this.ui.go(null);
  }

  /** Settings or the place in the open chat have changed. */
  async saveOpen() {
    if (this.saved) await this.keep(store.saveChat(this.chat));
  }

  /** Another tab has changed a chat. */
  async changedElsewhere(id) {
    const before = this.chat;
    const known = this.saved;
    await this.refresh();
    if (before && before.id === id && known && !this.runs.has(id)) {
      const fresh = await store.loadChat(id);
      if (this.chat !== before) return;
      if (!fresh) {
        this.ui.go(null);
        return;
      }
      if (fresh.updated !== before.updated || fresh.nodes.size !== before.nodes.size || [...fresh.nodes.values()].some((node) => node.state !== before.nodes.get(node.id)?.state)) {
        await this.endLostRuns(fresh);
        this.chat = fresh;
      }
    }
    this.ui.changed();
  }
}

const lockOf = (node) => `unicorn-answer-${node.id}`;

/** Runs `work` under a lock that other tabs can see; plain HTTP in a network has none. */
function locked(name, work) {
  return navigator.locks ? navigator.locks.request(name, work) : work();
}
