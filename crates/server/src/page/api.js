// The server: requests, streams, and what went wrong in words.

import { recall, remember } from './prefs.js';

const KEY = 'unicorn-key';
// Relative to the page, so that it also works below a path of a proxy.
const address = (path) => new URL(path, document.baseURI).href;

let key = recall(KEY) ?? '';

export const apiKey = () => key;
export const keyIsKept = () => recall(KEY) !== null;

/** Sets the key; it outlives the page only where that is asked for. */
export function setKey(value, keep) {
  key = value.trim();
  remember(KEY, key && keep ? key : null);
}

/** What went wrong. `kind` is one of key, busy, loading, network, request, server, stream; `retryAfter` is in seconds. */
export class Failure extends Error {
  constructor(kind, title, detail = '', retryAfter = null) {
    super(title);
    Object.assign(this, { kind, title, detail, retryAfter });
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: 'no-store', credentials: 'same-origin' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure('network', 'The server cannot be reached', navigator.onLine ? 'Is it still running?' : 'This device is offline.');
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const text = (await response.text().catch(() => '')).slice(0, 20_000);
  let message = '';
  try {
    const body = JSON.parse(text);
    message = typeof body.error === 'string' ? body.error : (body.error?.message ?? body.message ?? '');
  } catch {
    // What is no JSON comes from something between here and the server; its page is not worth showing.
    message = /^\s*</.test(text) ? '' : text.trim().slice(0, 500);
  }
  const after = response.headers.get('Retry-After');
  const seconds = after && /^\d+$/.test(after) ? Number(after) : after ? Math.max(0, Math.ceil((Date.parse(after) - Date.now()) / 1000)) : NaN;
  const retryAfter = Number.isFinite(seconds) ? Math.min(seconds, 3600) : null;
  const known = {
    401: ['key', key ? 'The server does not accept this API key' : 'This server asks for an API key'],
    403: ['request', 'The server refuses requests from this page'],
    404: ['request', 'The server does not know this model or route'],
    413: ['request', 'The message is larger than the server takes'],
    429: ['busy', 'The server is busy'],
    503: ['loading', 'The model is not ready yet'],
  }[response.status];
  const [kind, title] = known ?? (response.status < 500 ? ['request', 'The server refused this request'] : ['server', `The server failed (${response.status})`]);
  return new Failure(kind, title, String(message), retryAfter);
}

/** The models: `[{id, context}]`; `context` is in tokens, or nothing. */
export async function models() {
  const body = await (await request('v1/models')).json();
  const list = Array.isArray(body.data) ? body.data : [];
  return list.filter((model) => typeof model?.id === 'string').map((model) => ({ id: model.id, context: number(model.context_length) ?? number(model.max_model_len) ?? number(model.meta?.n_ctx) }));
}

/** What the server tells about itself and a model; nothing where it does not tell. */
export async function props(model) {
  try {
    const body = await (await request(`props${model ? `?model=${encodeURIComponent(model)}` : ''}`)).json();
    const defaults = body.default_generation_settings?.params ?? body.default_generation_settings ?? {};
    return {
      model: text(body.model) ?? text(body.model_alias),
      // Figures of another model than the one that was asked for are no figures of this one.
      ...(model && text(body.model) && body.model !== model ? { device: null, placement: null, context: null, defaults: {} } : {
        device: text(body.device),
        placement: text(body.placement),
        context: number(body.context_length) ?? number(body.default_generation_settings?.n_ctx),
        defaults,
      }),
      version: text(body.version) ?? text(body.build_info),
    };
  } catch (error) {
    if (error instanceof Failure && error.kind !== 'request') throw error;
    return null;
  }
}

/** `{ready, loading, progress, what, reason}`; `progress` is from 0 to 1, or nothing; `reason` tells why it is neither. */
export async function health() {
  let response;
  try {
    response = await fetch(address('health'), { cache: 'no-store' });
  } catch {
    throw new Failure('network', 'The server cannot be reached', 'It may be starting again.');
  }
  const body = await response.json().catch(() => ({}));
  const loading = Array.isArray(body.models) ? body.models.find((model) => model?.status === 'loading') : null;
  const progress = number(body.progress) ?? number(loading?.progress);
  const isLoading = body.status === 'loading' || Boolean(loading) || (!response.ok && body.status === undefined);
  return {
    ready: response.ok && !isLoading,
    loading: isLoading,
    progress: progress === null ? null : Math.min(1, Math.max(0, progress)),
    what: text(body.model) ?? text(loading?.id),
    reason: [text(body.status), text(body.reason)].filter(Boolean).join(': '),
  };
}

const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null);
const text = (value) => (typeof value === 'string' && value ? value : null);

/** Sends a chat request and yields the parsed chunks. Returns whether the stream ended as it should. */
export async function* stream(body, signal) {
  const response = await request('v1/chat/completions', { method: 'POST', headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' }, body: JSON.stringify(body), signal });
  if (!response.headers.get('Content-Type')?.includes('text/event-stream')) throw new Failure('stream', 'The server answered with something other than a stream', 'Is this address really the server of Unicorn?');
  for await (const data of events(response.body, signal)) {
    if (data === '[DONE]') return true;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new Failure('stream', 'The answer could not be read', data.slice(0, 200));
    }
    if (chunk.error) throw new Failure('stream', 'The server stopped with an error', String(chunk.error.message ?? chunk.error));
    yield chunk;
  }
  return false;
}

/** The data of server-sent events. Whoever stops reading closes the connection. */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let data = [];
  try {
    for (;;) {
      const part = await reader.read();
      const lines = (rest + (part.value ?? '')).split(/\r\n|\n|\r(?!$)/);
      rest = part.done ? '' : lines.pop();
      for (const line of lines) {
        if (line === '' && data.length) {
          yield data.join('\n');
          data = [];
        } else if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
      if (part.done) return;
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw new Failure('network', 'The connection was lost', 'What had arrived is kept.');
  } finally {
    reader.cancel().catch(() => {});
  }
}
