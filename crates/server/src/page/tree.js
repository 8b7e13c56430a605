// A conversation is a tree of messages: an edit or a new answer is another child of the same parent. Plain data, without the page.
//
// chat:    {id, title, named, created, updated, model, settings, choice: {parent id or '': child id}, place, nodes: Map of messages}
// message: {id, chat, parent, role, created, content, files, reasoning, calls, state, ...}
// `state` of an answer: running, done, stopped, partial (cut off), error.

/** A random name; `crypto.randomUUID` exists only on secure origins. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export function newChat(settings, model) {
  const now = Date.now();
  return { id: newId(), title: 'New chat', named: false, created: now, updated: now, model, settings: { ...settings }, choice: {}, place: null, nodes: new Map() };
}

/** The messages under each parent, oldest first: all versions of what is said there. */
export function families(chat) {
  const under = new Map();
  for (const node of chat.nodes.values()) {
    if (!under.has(node.parent)) under.set(node.parent, []);
    under.get(node.parent).push(node);
  }
  for (const list of under.values()) list.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  return under;
}

/** The messages that are shown: from the first one along the chosen children. */
export function path(chat, under = families(chat)) {
  const out = [];
  for (let parent = null; under.has(parent);) {
    const list = under.get(parent);
    const chosen = chat.choice[parent ?? ''];
    const node = list.find((one) => one.id === chosen) ?? list[list.length - 1];
    out.push(node);
    parent = node.id;
  }
  return out;
}

/** Adds a message under a parent and chooses it. */
export function add(chat, parent, fields) {
  // Versions are ordered by time, so two in one millisecond must differ.
  let created = Date.now();
  for (const other of chat.nodes.values()) if (other.parent === parent) created = Math.max(created, other.created + 1);
  const node = { id: newId(), chat: chat.id, parent, created, content: '', ...fields };
  chat.nodes.set(node.id, node);
  chat.choice[parent ?? ''] = node.id;
  chat.updated = Date.now();
  return node;
}

/** Chooses the way to a message, wherever in the tree it is. */
export function chooseTo(chat, id) {
  for (let node = chat.nodes.get(id); node; node = chat.nodes.get(node.parent)) chat.choice[node.parent ?? ''] = node.id;
}

/** A new chat of the messages up to one of them. */
export function fork(chat, node) {
  const copy = newChat(chat.settings, chat.model);
  copy.title = chat.title;
  copy.named = chat.named;
  const line = [];
  for (let at = node; at; at = chat.nodes.get(at.parent)) line.unshift(at);
  let parent = null;
  for (const from of line) {
    const id = newId();
    const state = from.state === 'running' ? 'partial' : from.state;
    copy.nodes.set(id, { ...structuredClone(from), id, chat: copy.id, parent, state });
    copy.choice[parent ?? ''] = id;
    parent = id;
  }
  return copy;
}

/** A title from the first words of a text. */
export function titleFrom(text) {
  const line = text.split('\n').map((part) => part.replace(/^[#>\-*\s]+|[`*_]/g, '').trim()).find((part) => part) ?? '';
  if (line.length <= 48) return line || 'New chat';
  const cut = line.slice(0, 48);
  return `${cut.includes(' ') ? cut.slice(0, cut.lastIndexOf(' ')) : cut}…`;
}

/** What the model gets for a message of a person: the text, then each file in a fence longer than any inside. */
export function fullText(node) {
  const parts = node.content ? [node.content] : [];
  for (const file of node.files ?? []) {
    const longest = Math.max(2, ...(file.text.match(/`+/g) ?? []).map((run) => run.length));
    const ticks = '`'.repeat(longest + 1);
    parts.push(`File \`${file.name.replaceAll('`', "'")}\`:\n${ticks}\n${file.text}${file.text.endsWith('\n') ? '' : '\n'}${ticks}`);
  }
  return parts.join('\n\n');
}

/** The messages of a request: up to `end`, which is left out, or kept for the model to go on with. */
export function requestMessages(chat, end, keepEnd) {
  const out = [];
  for (let node = keepEnd ? end : chat.nodes.get(end.parent); node; node = chat.nodes.get(node.parent)) {
    if (node.role === 'user') out.unshift({ role: 'user', content: fullText(node) });
    else if (node.role === 'tool') out.unshift({ role: 'tool', tool_call_id: node.call, content: node.content });
    else {
      const message = { role: 'assistant', content: node.content };
      if (node.calls?.length) message.tool_calls = node.calls.map((call) => ({ id: call.id, type: 'function', function: { name: call.name, arguments: call.arguments } }));
      if (node === end && node.reasoning) message.reasoning_content = node.reasoning;
      // An answer that failed before its first word is no part of the conversation.
      if (message.content || message.tool_calls || node === end) out.unshift(message);
    }
  }
  const system = chat.settings.system?.trim();
  if (system) out.unshift({ role: 'system', content: system });
  return out;
}
