// One answer while it is written: the request, its stream, waiting where the server is busy or loading, and what is kept of it.

import { stream, health, Failure } from './api.js';

// What a crash may cost of an answer.
const SAVE_EVERY_MS = 250;
const BUSY_TRIES_MAX = 8;
const LOOK_EVERY_MS = 1500;

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const stop = () => {
    clearTimeout(timer);
    reject(new DOMException('stopped', 'AbortError'));
  };
  const timer = setTimeout(() => {
    signal.removeEventListener('abort', stop);
    resolve();
  }, ms);
  signal.addEventListener('abort', stop, { once: true });
});

export class Run {
  /** `onchange(run)` is called often: whoever shows it should wait for a frame. `device()` tells where the model is. */
  constructor({ chat, node, body, save, onchange, onbegin, device }) {
    Object.assign(this, { chat, node, body, save, onchange, onbegin, device });
    this.controller = new AbortController();
    this.phase = { kind: 'sent', since: performance.now() };
    this.saved = 0;
    this.usage = null;
    this.timings = null;
    this.hurry = () => {};
  }

  stop() {
    this.controller.abort();
  }

  /** Ends a wait for a busy server. */
  now() {
    this.hurry();
  }

  /** Runs to the end, whatever that is; never throws. */
  async start() {
    const { node } = this;
    node.state = 'running';
    delete node.error;
    try {
      await this.untilAnswered();
      node.state = node.finish ? 'done' : 'partial';
      if (!node.finish) node.error = { kind: 'network', title: 'The answer ended too early', detail: 'The connection closed before the end.' };
    } catch (error) {
      if (this.controller.signal.aborted) node.state = 'stopped';
      else {
        const known = error instanceof Failure ? error : new Failure('page', 'This page failed', String(error?.message ?? error));
        node.state = node.content || node.reasoning ? 'partial' : 'error';
        node.error = { kind: known.kind, title: known.title, detail: known.detail };
      }
    }
    this.phase = { kind: 'ended' };
    this.measure();
    await this.keep(true);
    this.onchange(this);
  }

  async untilAnswered() {
    for (let tries = 1; ; tries++) {
      try {
        return await this.attempt();
      } catch (error) {
        // Once words have come, asking again would begin anew.
        const again = error instanceof Failure && !this.began && tries < BUSY_TRIES_MAX;
        if (again && error.kind === 'busy') await this.waitBusy(error, tries);
        else if (again && error.kind === 'loading') await this.waitLoading(error);
        else throw error;
      }
    }
  }

  async waitBusy(error, tries) {
    const seconds = Math.max(1, error.retryAfter ?? Math.min(30, 2 ** tries));
    const until = performance.now() + seconds * 1000;
    let hurried = false;
    this.hurry = () => { hurried = true; };
    while (!hurried && performance.now() < until) {
      this.tell({ kind: 'busy', detail: error.detail, seconds: Math.ceil((until - performance.now()) / 1000) });
      await pause(Math.min(250, Math.max(1, until - performance.now())), this.controller.signal);
    }
    this.tell({ kind: 'sent', since: performance.now() });
  }

  async waitLoading(error) {
    for (;;) {
      const state = await health().catch(() => ({ ready: false, loading: true, progress: null }));
      if (!state.ready && !state.loading) throw new Failure('server', 'The server cannot answer', state.reason || error.detail);
      this.tell({ kind: 'loading', detail: error.detail, progress: state.progress, what: state.what });
      // A server that is ready but says 503 still has its reason: then its own pace counts.
      await pause(state.ready ? Math.max(1, error.retryAfter ?? 1) * 1000 : 700, this.controller.signal);
      if (state.ready) break;
    }
    this.tell({ kind: 'sent', since: performance.now() });
  }

  tell(phase) {
    this.phase = phase;
    this.onchange(this);
  }

  async attempt() {
    this.begin = performance.now();
    const watch = setInterval(() => this.lookWhy(), LOOK_EVERY_MS);
    try {
      for await (const chunk of stream(this.body, this.controller.signal)) this.take(chunk);
    } finally {
      clearInterval(watch);
    }
  }

  /** A model that is not loaded yet is loaded for the request, which waits meanwhile: then this is what is shown. */
  async lookWhy() {
    const waits = () => !this.began && (this.phase.kind === 'sent' || this.phase.waits);
    if (!waits() || this.looking) return;
    this.looking = true;
    const state = await health().catch(() => null);
    this.looking = false;
    if (!waits()) return;
    if (state?.loading) this.tell({ kind: 'loading', waits: true, detail: '', progress: state.progress, what: state.what });
    else if (this.phase.waits) this.tell({ kind: 'sent', since: performance.now() });
  }

  take(chunk) {
    const { node } = this;
    if (typeof chunk.model === 'string') node.model = chunk.model;
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.timings) this.timings = chunk.timings;
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (reasoning || delta.content || delta.tool_calls?.length) this.first();
    if (typeof reasoning === 'string' && reasoning) {
      this.thinking ??= performance.now();
      node.reasoning = (node.reasoning ?? '') + reasoning;
      this.phase = { kind: 'thinking' };
    }
    if (typeof delta.content === 'string' && delta.content) {
      this.endThought();
      node.content += delta.content;
      this.phase = { kind: 'writing' };
    }
    for (const part of delta.tool_calls ?? []) this.takeCall(part);
    if (choice?.finish_reason) node.finish = choice.finish_reason;
    this.last = performance.now();
    this.keep(false);
    this.onchange(this);
  }

  first() {
    if (this.began) return;
    this.began = performance.now();
    this.onbegin?.();
  }

  endThought() {
    if (!this.thinking || this.node.thought !== undefined) return;
    this.node.thought = (performance.now() - this.thinking) / 1000;
  }

  takeCall(part) {
    this.endThought();
    this.phase = { kind: 'calling' };
    this.node.calls ??= [];
    const index = Number.isInteger(part.index) && part.index >= 0 && part.index < 256 ? part.index : this.node.calls.length;
    while (this.node.calls.length <= index) this.node.calls.push({ id: '', name: '', arguments: '' });
    const call = this.node.calls[index];
    if (part.id) call.id = String(part.id);
    if (part.function?.name) call.name += String(part.function.name);
    if (part.function?.arguments) call.arguments += String(part.function.arguments);
  }

  /** What is shown below the answer; what the server did not tell is measured here, or left out. */
  measure() {
    const { node, usage, timings } = this;
    this.endThought();
    const stats = {};
    const put = (name, value) => { if (typeof value === 'number' && Number.isFinite(value)) stats[name] = value; };
    put('prompt', usage?.prompt_tokens ?? timings?.prompt_tokens);
    put('cached', timings?.cached_tokens ?? usage?.prompt_tokens_details?.cached_tokens);
    put('output', usage?.completion_tokens);
    put('prefill', timings?.prefill_seconds);
    put('decode', timings?.decode_seconds);
    if (this.began) put('first', (this.began - this.begin) / 1000);
    const seconds = this.began && this.last > this.began ? (this.last - this.began) / 1000 : 0;
    put('speed', timings?.tokens_per_second ?? (seconds > 0.05 && stats.output > 1 ? (stats.output - 1) / seconds : undefined));
    if (Object.keys(stats).length) node.stats = { ...stats, ...(this.device() ? { device: this.device() } : {}) };
  }

  /** Writes what has come so far, not more often than needed. */
  async keep(now) {
    const time = performance.now();
    if (!now && time - this.saved < SAVE_EVERY_MS) return;
    this.saved = time;
    await this.save(this);
  }
}
