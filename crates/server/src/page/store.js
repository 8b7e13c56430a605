// Conversations in the browser's own database. Where there is none (some private windows), they are kept until the page closes,
// and the page says so.

const NAME = 'unicorn';
const STORES = { chats: 'id', messages: 'id', drafts: 'chat' };

let database = null;
let memory = null;
const channel = 'BroadcastChannel' in window ? new BroadcastChannel('unicorn-chats') : null;

/** Opens the database. Returns a reason where chats cannot be kept. */
export async function open() {
  try {
    database = await new Promise((resolve, reject) => {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => {
        for (const [name, keyPath] of Object.entries(STORES)) request.result.createObjectStore(name, { keyPath });
        request.transaction.objectStore('messages').createIndex('chat', 'chat');
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error('another tab holds an older version open'));
    });
    database.onversionchange = () => database.close();
    return null;
  } catch (error) {
    memory = Object.fromEntries(Object.keys(STORES).map((name) => [name, new Map()]));
    return error?.message ?? 'the browser has no database here';
  }
}

/** Calls `run(chat id)` when another tab has changed a chat. */
export function onOtherTab(run) {
  channel?.addEventListener('message', (event) => run(String(event.data)));
}

function wait(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Runs `work(name of store -> store)` as one change, which is whole or is not done. */
function change(names, work) {
  if (memory) {
    work((name) => ({
      put: (value) => memory[name].set(value[STORES[name]], structuredClone(value)),
      delete: (key) => memory[name].delete(key),
      clear: () => memory[name].clear(),
    }));
    return Promise.resolve();
  }
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(names, 'readwrite');
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error('the change was given up'));
    work((name) => transaction.objectStore(name));
  });
}

function all(name, chat) {
  if (memory) return Promise.resolve([...memory[name].values()].filter((value) => chat === undefined || value.chat === chat).map((value) => structuredClone(value)));
  const store = database.transaction(name).objectStore(name);
  return wait(chat === undefined ? store.getAll() : store.index('chat').getAll(chat));
}

function one(name, key) {
  if (memory) return Promise.resolve(structuredClone(memory[name].get(key)));
  return wait(database.transaction(name).objectStore(name).get(key));
}

const plain = ({ nodes: _, ...chat }) => chat;

/** All chats without their messages, the latest first. */
export async function listChats() {
  return (await all('chats')).sort((a, b) => b.updated - a.updated);
}

/** A chat with its messages, or nothing where there is none. */
export async function loadChat(id) {
  const chat = await one('chats', id);
  if (!chat) return null;
  chat.nodes = new Map((await all('messages', id)).map((node) => [node.id, node]));
  return chat;
}

/** Writes a chat, and those of its messages that are named. */
export async function saveChat(chat, nodes = []) {
  await change(['chats', 'messages'], (store) => {
    store('chats').put(plain(chat));
    for (const node of nodes) store('messages').put(node);
  });
  channel?.postMessage(chat.id);
}

/** Writes one message of a chat that is there already. */
export function saveNode(node) {
  return change(['messages'], (store) => store('messages').put(node));
}

export async function deleteChat(chat) {
  await change(['chats', 'messages', 'drafts'], (store) => {
    store('chats').delete(chat.id);
    store('drafts').delete(chat.id);
    for (const id of chat.nodes.keys()) store('messages').delete(id);
  });
  channel?.postMessage(chat.id);
}

export async function deleteAll() {
  await change(Object.keys(STORES), (store) => Object.keys(STORES).forEach((name) => store(name).clear()));
  channel?.postMessage('');
}

/** Every message there is, for the search. */
export const allMessages = () => all('messages');

export async function loadDraft(chat) {
  return (await one('drafts', chat)) ?? { chat, text: '', files: [] };
}

/** Keeps what is typed but not sent; an empty draft is removed. */
export function saveDraft(draft) {
  const empty = !draft.text && !draft.files.length;
  return change(['drafts'], (store) => (empty ? store('drafts').delete(draft.chat) : store('drafts').put(draft)));
}
