// Chats as a file, and back. A file comes from outside, so every field is checked and only known ones are taken.

import { newId, newChat, titleFrom } from './tree.js';

const FORMAT = 'unicorn-chats';
export const IMPORT_BYTES_MAX = 200 * 1024 * 1024;
const ROLES = ['user', 'assistant', 'tool'];
const STATES = ['done', 'stopped', 'partial', 'error'];

/** The file of some chats, as text. */
export function exportChats(chats) {
  const file = { format: FORMAT, version: 1, exported: new Date().toISOString(), chats: chats.map(({ nodes, ...chat }) => ({ ...chat, messages: [...nodes.values()] })) };
  return JSON.stringify(file, null, 1);
}

/** Offers a text as a download. */
export function download(name, text) {
  const anchor = document.createElement('a');
  anchor.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000);
}

/** A name for a file out of a title. */
export function fileName(title) {
  const safe = title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-+|-+$/g, '').slice(0, 40);
  return `unicorn-${safe || 'chat'}.json`;
}

/** The chats of a file, with new ids where `taken` has theirs. Throws what is wrong with it, in words. */
export function importChats(text, taken) {
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new Error(`It is no JSON: ${error.message}`);
  }
  if (data?.format === FORMAT) {
    if (data.version !== 1) throw new Error(`It has version ${String(data.version).slice(0, 20)}; this page reads version 1`);
    if (!Array.isArray(data.chats)) throw new Error('"chats" is no list');
    return data.chats.map((chat, i) => readChat(chat, `chat ${i + 1}`, taken));
  }
  const messages = Array.isArray(data) ? data : data?.messages;
  if (Array.isArray(messages)) return [fromMessages(messages)];
  throw new Error('It holds no chats: neither "format": "unicorn-chats" nor a list of messages');
}

const isText = (value) => typeof value === 'string';
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);
const isRecord = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

function need(value, test, where) {
  if (!test(value)) throw new Error(`${where} is missing or of a wrong kind`);
  return value;
}

function readChat(raw, where, taken) {
  need(raw, isRecord, where);
  const chat = newChat({}, isText(raw.model) ? raw.model : null);
  const keep = isText(raw.id) && /^[\w-]{1,64}$/.test(raw.id) && !taken.has(raw.id);
  if (keep) chat.id = raw.id;
  taken.add(chat.id);
  chat.title = need(raw.title, isText, `${where}: "title"`).slice(0, 200);
  chat.named = raw.named === true;
  if (isNumber(raw.created)) chat.created = raw.created;
  if (isNumber(raw.updated)) chat.updated = raw.updated;
  if (isRecord(raw.settings)) chat.settings = readSettings(raw.settings);
  const ids = new Map();
  const messages = need(raw.messages, Array.isArray, `${where}: "messages"`);
  messages.forEach((message, i) => ids.set(need(message?.id, isText, `${where}, message ${i + 1}: "id"`), newId()));
  messages.forEach((message, i) => {
    const node = readMessage(message, `${where}, message ${i + 1}`, ids);
    node.chat = chat.id;
    chat.nodes.set(node.id, node);
  });
  checkTree(chat, where);
  if (isRecord(raw.choice)) for (const [parent, child] of Object.entries(raw.choice)) if (ids.has(child)) chat.choice[ids.get(parent) ?? ''] = ids.get(child);
  return chat;
}

function readMessage(raw, where, ids) {
  const node = {
    id: ids.get(raw.id),
    parent: raw.parent === null ? null : need(ids.get(raw.parent), isText, `${where}: "parent"`),
    role: need(raw.role, (role) => ROLES.includes(role), `${where}: "role"`),
    content: need(raw.content, isText, `${where}: "content"`),
    created: isNumber(raw.created) ? raw.created : 0,
  };
  for (const name of ['reasoning', 'model', 'finish', 'call', 'name']) if (isText(raw[name])) node[name] = raw[name];
  if (isNumber(raw.thought)) node.thought = raw.thought;
  if (node.role === 'assistant') node.state = STATES.includes(raw.state) ? raw.state : raw.state === 'running' ? 'partial' : 'done';
  if (Array.isArray(raw.files)) node.files = raw.files.filter((file) => isRecord(file) && isText(file.name) && isText(file.text)).map(({ name, text }) => ({ name, text }));
  if (Array.isArray(raw.calls)) node.calls = raw.calls.filter((call) => isRecord(call) && isText(call.name) && isText(call.arguments)).map((call) => ({ id: isText(call.id) ? call.id : '', name: call.name, arguments: call.arguments }));
  if (isRecord(raw.stats)) node.stats = Object.fromEntries(Object.entries(raw.stats).filter(([, value]) => isNumber(value) || isText(value)));
  if (isRecord(raw.error) && isText(raw.error.title)) node.error = { kind: 'old', title: raw.error.title, detail: isText(raw.error.detail) ? raw.error.detail : '' };
  return node;
}

/** Settings hold numbers and texts; the page checks their ranges where it sends them. */
export function readSettings(raw) {
  return Object.fromEntries(Object.entries(raw).filter(([name, value]) => /^\w{1,32}$/.test(name) && (isNumber(value) || isText(value))));
}

/** Refuses messages that are their own ancestors: they would never be shown, and walks up would not end. */
function checkTree(chat, where) {
  const rooted = new Set();
  for (const start of chat.nodes.values()) {
    const walk = new Set();
    for (let node = start; node && !rooted.has(node.id); node = chat.nodes.get(node.parent)) {
      if (walk.has(node.id)) throw new Error(`${where}: a message is its own ancestor`);
      walk.add(node.id);
    }
    for (const id of walk) rooted.add(id);
  }
}

/** A plain list of `{role, content}`, as requests and other programs have it. */
function fromMessages(messages) {
  const chat = newChat({}, null);
  let parent = null;
  messages.forEach((message, i) => {
    const where = `message ${i + 1}`;
    const role = need(message?.role, isText, `${where}: "role"`);
    const content = Array.isArray(message.content) ? message.content.map((part) => (isText(part?.text) ? part.text : '')).join('') : need(message.content ?? '', isText, `${where}: "content"`);
    if (role === 'system' || role === 'developer') {
      chat.settings.system = [chat.settings.system, content].filter(Boolean).join('\n\n');
      return;
    }
    need(role, (one) => ROLES.includes(one), `${where}: "role"`);
    const node = { id: newId(), chat: chat.id, parent, role, content, created: chat.created + i };
    if (role === 'assistant') node.state = 'done';
    if (role === 'tool') node.call = isText(message.tool_call_id) ? message.tool_call_id : '';
    if (Array.isArray(message.tool_calls)) node.calls = message.tool_calls.filter((call) => isText(call?.function?.name)).map((call) => ({ id: String(call.id ?? ''), name: call.function.name, arguments: String(call.function.arguments ?? '') }));
    chat.nodes.set(node.id, node);
    parent = node.id;
  });
  const first = [...chat.nodes.values()].find((node) => node.role === 'user');
  chat.title = titleFrom(first?.content ?? '');
  return chat;
}
