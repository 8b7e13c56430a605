// Headless Chromium through the DevTools protocol, over a pair of pipes: nothing but node is needed.

import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const KEYS = { Enter: [13, '\r'], Escape: [27], Tab: [9], Backspace: [8], ArrowUp: [38], ArrowDown: [40], ArrowLeft: [37], ArrowRight: [39], ' ': [32, ' '] };

export class Browser {
  static async launch(program) {
    const browser = new Browser();
    browser.folder = await mkdtemp(join(tmpdir(), 'unicorn-page-'));
    browser.process = spawn(program, ['--headless=new', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--hide-scrollbars', '--force-color-profile=srgb', `--user-data-dir=${browser.folder}`, 'about:blank'], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    browser.waiting = new Map();
    browser.listeners = new Set();
    browser.number = 0;
    let rest = '';
    browser.process.stdio[4].setEncoding('utf8').on('data', (data) => {
      const messages = (rest + data).split('\0');
      rest = messages.pop();
      for (const message of messages) browser.take(JSON.parse(message));
    });
    browser.gone = new Promise((resolve) => browser.process.once('exit', resolve));
    await Promise.race([browser.send('Browser.getVersion'), browser.gone.then((code) => { throw new Error(`${program} ended with ${code}`); })]);
    return browser;
  }

  take(message) {
    const wait = this.waiting.get(message.id);
    if (wait) {
      this.waiting.delete(message.id);
      if (message.error) wait.reject(new Error(`${wait.method}: ${message.error.message}`));
      else wait.resolve(message.result);
    } else for (const listener of this.listeners) listener(message);
  }

  send(method, params = {}, sessionId = undefined) {
    const id = ++this.number;
    this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject, method }));
  }

  /** A page of its own: nothing is shared with other pages but through `context`. */
  async page(context = null) {
    const browserContextId = context ?? (await this.send('Target.createBrowserContext')).browserContextId;
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank', browserContextId });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new Page(this, sessionId, targetId, browserContextId);
    await page.begin();
    return page;
  }

  async close() {
    await Promise.race([this.send('Browser.close').catch(() => {}), sleep(3000)]);
    this.process.kill('SIGKILL');
    await this.gone;
    await rm(this.folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }
}

export class Page {
  constructor(browser, session, target, context) {
    Object.assign(this, { browser, session, target, context, errors: [], requested: [] });
  }

  send(method, params = {}) {
    return this.browser.send(method, params, this.session);
  }

  async begin() {
    this.listener = (message) => message.sessionId === this.session && this.event(message);
    this.browser.listeners.add(this.listener);
    for (const domain of ['Page', 'Runtime', 'Network', 'Log', 'DOM']) await this.send(`${domain}.enable`);
    await this.desktop();
  }

  event({ method, params }) {
    if (method === 'Runtime.exceptionThrown') this.errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === 'Runtime.consoleAPICalled' && params.type === 'error') this.errors.push(params.args.map((arg) => arg.value ?? arg.description).join(' '));
    // Statuses that a test asks for are no mistakes of the page; what its policy blocks is.
    if (method === 'Log.entryAdded' && params.entry.level === 'error' && params.entry.source !== 'network') this.errors.push(params.entry.text);
    if (method === 'Network.requestWillBeSent') this.requested.push(params.request.url);
    if (method === 'Page.loadEventFired') this.loaded?.();
  }

  desktop() {
    return this.send('Emulation.setDeviceMetricsOverride', { width: 1280, height: 840, deviceScaleFactor: 1, mobile: false });
  }

  async phone() {
    await this.send('Emulation.setDeviceMetricsOverride', { width: 390, height: 844, deviceScaleFactor: 2, mobile: true });
    await this.send('Emulation.setTouchEmulationEnabled', { enabled: true });
  }

  /** Light or dark, and without motion, so that what is looked at stands still. */
  scheme(value) {
    return this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value }, { name: 'prefers-reduced-motion', value: 'reduce' }] });
  }

  async go(url) {
    const loaded = new Promise((resolve) => { this.loaded = resolve; });
    await this.send('Page.navigate', { url });
    await loaded;
  }

  async reload() {
    const loaded = new Promise((resolve) => { this.loaded = resolve; });
    await this.send('Page.reload');
    await loaded;
  }

  /** Runs an expression, or a function with arguments that JSON can hold, in the page. */
  async eval(code, ...args) {
    const expression = typeof code === 'function' ? `(${code})(${args.map((arg) => JSON.stringify(arg)).join(', ')})` : code;
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true, userGesture: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until the code gives something true, and gives it. */
  async until(code, ...args) {
    const limit = this.patience ?? 8000;
    for (const begin = Date.now(); ;) {
      const value = await this.eval(code, ...args);
      if (value) return value;
      if (Date.now() - begin > limit) throw new Error(`waited ${limit} ms for ${String(code)} ${args.length ? JSON.stringify(args) : ''}`);
      await sleep(30);
    }
  }

  /** A real click in the middle of an element, which must be in sight and uncovered. */
  async click(selector, index = 0) {
    const at = await this.until((css, i) => {
      const element = [...document.querySelectorAll(css)].filter((one) => one.checkVisibility({ visibilityProperty: true })).at(i);
      if (!element) return null;
      element.scrollIntoView({ block: 'nearest' });
      const box = element.getBoundingClientRect();
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      const top = document.elementFromPoint(x, y);
      return top && (element.contains(top) || top.contains(element)) ? { x, y } : null;
    }, selector, index);
    await this.send('Input.dispatchMouseEvent', { type: 'mouseMoved', ...at });
    for (const type of ['mousePressed', 'mouseReleased']) await this.send('Input.dispatchMouseEvent', { type, ...at, button: 'left', clickCount: 1 });
  }

  async type(text) {
    await this.send('Input.insertText', { text });
  }

  /** `press('k', 'ctrl', 'shift')` */
  async press(key, ...modifiers) {
    const bits = { alt: 1, ctrl: 2, meta: 4, shift: 8 };
    const [code, text] = KEYS[key] ?? [key.toUpperCase().charCodeAt(0), key];
    const event = { key, windowsVirtualKeyCode: code, modifiers: modifiers.reduce((sum, name) => sum + bits[name], 0), code: key.length === 1 ? `Key${key.toUpperCase()}` : key };
    const types = text && !modifiers.includes('ctrl') ? { ...event, text } : event;
    await this.send('Input.dispatchKeyEvent', { type: text ? 'keyDown' : 'rawKeyDown', ...types });
    await this.send('Input.dispatchKeyEvent', { type: 'keyUp', ...event });
  }

  /** Writes files, given as `[name, text or bytes]`, and tells where. */
  async written(files) {
    const paths = [];
    for (const [name, content] of files) {
      paths.push(join(this.browser.folder, name.replaceAll('/', '_')));
      await writeFile(paths.at(-1), content);
    }
    return paths;
  }

  /** Drops files on the middle of the page. */
  async drop(...files) {
    const data = { items: [], files: await this.written(files), dragOperationsMask: 1 };
    for (const type of ['dragEnter', 'dragOver', 'drop']) await this.send('Input.dispatchDragEvent', { type, x: 500, y: 300, data });
  }

  /** Chooses files in a field for files. */
  async pick(selector, ...files) {
    const { root } = await this.send('DOM.getDocument');
    const { nodeId } = await this.send('DOM.querySelector', { nodeId: root.nodeId, selector });
    await this.send('DOM.setFileInputFiles', { files: await this.written(files), nodeId });
  }

  /** What the next download holds, after `start` has asked for it. */
  async download(start) {
    await this.browser.send('Browser.setDownloadBehavior', { behavior: 'allow', downloadPath: this.browser.folder, browserContextId: this.context, eventsEnabled: true });
    const done = new Promise((resolve) => {
      let name = '';
      const listener = ({ method, params }) => {
        if (method === 'Browser.downloadWillBegin') name = params.suggestedFilename;
        if (method === 'Browser.downloadProgress' && params.state === 'completed') {
          this.browser.listeners.delete(listener);
          resolve(name);
        }
      };
      this.browser.listeners.add(listener);
    });
    await start();
    const name = await Promise.race([done, sleep(8000).then(() => { throw new Error('no download came'); })]);
    return { name, text: await readFile(join(this.browser.folder, name), 'utf8') };
  }

  async screenshot(path) {
    const { data } = await this.send('Page.captureScreenshot', { format: 'png' });
    await writeFile(path, Buffer.from(data, 'base64'));
  }

  async close() {
    this.browser.listeners.delete(this.listener);
    await this.browser.send('Target.closeTarget', { targetId: this.target });
  }
}

export { sleep };
