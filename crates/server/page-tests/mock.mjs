// A server for the tests: the page with its real headers, and answers that are known beforehand. What it answers is chosen by words
// in the last message, so that a test says in its own text what it wants.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { answers } from './answers.mjs';

const PAGE = new URL('../src/page/', import.meta.url);
const TYPES = { html: 'text/html; charset=utf-8', css: 'text/css; charset=utf-8', js: 'text/javascript; charset=utf-8', svg: 'image/svg+xml' };

/** The policy that the real server sends, read from its source. */
export async function policy() {
  const source = await readFile(new URL('mod.rs', PAGE), 'utf8');
  const found = /CONTENT_SECURITY_POLICY: &str = "([^"]*)"/.exec(source);
  if (!found) throw new Error('mod.rs has no CONTENT_SECURITY_POLICY');
  return found[1].replace(/\\\n\s*/g, '');
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Mock {
  constructor() {
    this.requests = [];
    this.open = 0;
    this.closedEarly = 0;
    this.reset();
  }

  reset() {
    this.requests.length = 0;
    this.closedEarly = 0;
    this.key = null;
    this.busy = 0;
    this.loading = 0;
    this.noProps = false;
    this.sick = null;
    this.unloaded = false;
    this.dead = false;
  }

  async start() {
    this.csp = await policy();
    this.server = createServer((request, response) => this.handle(request, response).catch((error) => {
      console.error('the mock failed:', error);
      response.destroy();
    }));
    await new Promise((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this.url;
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }

  /** Chat requests that have come. */
  get chats() {
    return this.requests.filter((request) => request.path === '/v1/chat/completions');
  }

  async handle(request, response) {
    const url = new URL(request.url, this.url);
    let body = '';
    for await (const part of request) body += part;
    if (url.pathname === '/' || url.pathname.startsWith('/page/')) {
      await this.page(url.pathname, response);
      return;
    }
    if (this.dead) {
      request.socket.destroy();
      return;
    }
    const parsed = body ? JSON.parse(body) : null;
    this.requests.push({ path: url.pathname, body: parsed, authorization: request.headers.authorization ?? null });
    const json = (status, value, headers = {}) => {
      response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
      response.end(JSON.stringify(value));
    };
    if (url.pathname === '/health') {
      if (this.sick) json(503, { status: this.sick, reason: 'its file is gone' });
      else if (this.loading > 0) {
        this.loading -= 1;
        json(503, { status: 'loading', model: 'mock-large', progress: 1 - this.loading / 4 });
      } else json(200, { status: 'ok' });
      return;
    }
    if (this.key && request.headers.authorization !== `Bearer ${this.key}`) {
      json(401, { error: { message: 'A key is needed: Authorization: Bearer KEY', type: 'invalid_request_error', code: 'invalid_api_key' } });
      return;
    }
    if (this.unloaded && url.pathname === '/v1/models') json(200, { object: 'list', data: [{ id: 'mock-small', object: 'model' }] });
    else if (this.unloaded && url.pathname === '/props') json(200, { model: 'mock-small', loaded: false });
    else if (url.pathname === '/v1/models') json(200, { object: 'list', data: [{ id: 'mock-small', object: 'model', context_length: 8192 }, { id: 'mock-large', object: 'model', context_length: 32768 }] });
    else if (url.pathname === '/props' && !this.noProps) json(200, { model: 'mock-small', device: 'CPU (AVX2, 8 threads)', placement: 'all=cpu', context_length: 8192, version: '0.1.0', default_generation_settings: { params: { temperature: 0.7, top_p: 0.95, top_k: 40, min_p: 0.05 } } });
    else if (url.pathname === '/v1/chat/completions') await this.chat(parsed, response, json);
    else json(404, { error: { message: `There is no ${url.pathname}` } });
  }

  async page(path, response) {
    const name = path === '/' ? 'index.html' : path.slice('/page/'.length);
    try {
      const body = await readFile(new URL(name, PAGE));
      response.writeHead(200, { 'Content-Type': TYPES[name.split('.').pop()], 'Content-Security-Policy': this.csp, 'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-store' });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  }

  async chat(body, response, json) {
    const last = body.messages[body.messages.length - 1];
    const goingOn = last.role === 'assistant';
    const question = goingOn ? body.messages[body.messages.length - 2].content : last.content;
    if (this.busy > 0) {
      this.busy -= 1;
      json(429, { error: { message: 'The queue is full.', type: 'rate_limit_error' } }, { 'Retry-After': '2' });
      return;
    }
    if (this.unloaded) {
      // As the server does it: the request waits, and its model is loaded meanwhile.
      while (this.loading > 0) await sleep(50);
      this.unloaded = false;
    }
    if (this.loading > 0 || this.sick) {
      json(503, { error: { message: 'The model is loading.' } }, { 'Retry-After': '1' });
      return;
    }
    if (/fail 400/.test(question)) {
      json(400, { error: { message: 'The prompt has 9000 tokens; the context has 8192.', param: 'messages' } });
      return;
    }
    const plan = answers(question, goingOn ? last.content : '');
    await this.stream(plan, body, response);
  }

  async stream(plan, body, response) {
    this.open += 1;
    let gone = false;
    response.on('close', () => { gone = true; });
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
    const send = (value) => response.write(`data: ${JSON.stringify(value)}\n\n`);
    const chunk = (delta, finish = null) => send({ id: 'chatcmpl-1', object: 'chat.completion.chunk', model: body.model, choices: [{ index: 0, delta, finish_reason: finish }] });
    response.write(': ping\n\n');
    if (plan.wait) await sleep(plan.wait);
    chunk({ role: 'assistant', content: '' });
    let sent = 0;
    for (const [field, text] of plan.parts) {
      const pieces = typeof text === 'string' ? text.match(new RegExp(`[\\s\\S]{1,${plan.size ?? 6}}`, 'gu')) ?? [] : text;
      for (const piece of pieces) {
        if (gone) break;
        chunk({ [field]: piece });
        sent += 1;
        if (plan.delay) await sleep(plan.delay);
      }
    }
    this.open -= 1;
    if (gone) {
      this.closedEarly += 1;
      return;
    }
    if (plan.cut) {
      response.destroy();
      return;
    }
    if (plan.error) {
      send({ error: { message: plan.error } });
      response.end();
      return;
    }
    chunk({}, plan.finish ?? 'stop');
    const prompt = Math.round(JSON.stringify(body.messages).length / 4);
    if (body.stream_options?.include_usage) {
      send({ id: 'chatcmpl-1', choices: [], usage: { prompt_tokens: prompt, completion_tokens: sent, total_tokens: prompt + sent }, timings: { prompt_tokens: prompt, cached_tokens: Math.round(prompt / 2), prefill_seconds: 0.12, decode_seconds: sent / 41.5, tokens_per_second: 41.5 } });
    }
    response.write('data: [DONE]\n\n');
    response.end();
  }
}
