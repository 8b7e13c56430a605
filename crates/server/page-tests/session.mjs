// What the tests do with the page, in the words of somebody who uses it.

import assert from 'node:assert/strict';

export class Session {
  static async begin({ browser, url, mock, key }) {
    const session = new Session();
    Object.assign(session, { browser, url, mock, key });
    session.page = await browser.page();
    // A real model may be slow.
    if (!mock) session.page.patience = 60_000;
    // As a browser sends it after it has asked for a password: the page itself is behind the key too.
    if (key) await session.page.send('Network.setExtraHTTPHeaders', { headers: { Authorization: `Basic ${btoa(`unicorn:${key}`)}` } });
    await session.open('/');
    // A few words are enough of an answer that nobody knows beforehand.
    if (!mock) await session.limit(40);
    return session;
  }

  /** How many tokens the answers of new chats may have, where a real model gives them. */
  async limit(tokens) {
    if (this.mock) return;
    await this.page.eval((n) => localStorage.setItem('unicorn-settings', JSON.stringify({ max_tokens: n, temperature: 0.7 })), tokens);
    await this.reload();
  }

  async end() {
    await this.page.close();
    await this.browser.send('Target.disposeBrowserContext', { browserContextId: this.page.context }).catch(() => {});
  }

  /** No script failed, the policy blocked nothing, and nothing went to another server. */
  nothingWentWrong() {
    assert.deepEqual(this.page.errors, []);
    const outside = this.page.requested.filter((address) => !address.startsWith(this.url) && !address.startsWith('blob:') && address !== 'about:blank');
    assert.deepEqual(outside, []);
  }

  async open(path) {
    await this.page.go(this.url + path);
    await this.ready();
  }

  async ready() {
    await this.page.until(() => document.querySelector('#model')?.options.length > 0 && document.querySelector('#send svg') !== null);
  }

  async reload() {
    await this.page.reload();
    await this.ready();
  }

  /** Types a message and sends it with Enter. */
  async send(text) {
    await this.page.eval(() => document.querySelector('#prompt').focus());
    if (text) await this.page.type(text);
    await this.page.press('Enter');
  }

  /** Sends, and waits until the answer is whole. */
  async ask(text) {
    const before = await this.page.eval(() => document.querySelectorAll('.answer').length);
    await this.send(text);
    await this.page.until((n) => document.querySelectorAll('.answer').length > n, before);
    await this.idle();
  }

  async newChat() {
    await this.page.click('#new-chat');
    await this.page.until(() => document.querySelectorAll('.message').length === 0);
  }

  idle() {
    return this.page.until(() => !document.querySelector('.answer.running') && document.querySelector('#send').getAttribute('aria-label') === 'Send' && document.querySelectorAll('.answer:last-child .actions').length > 0);
  }

  /** The messages in sight: `[['you', text], ['answer', text]]`. */
  messages() {
    return this.page.eval(() => {
      // What is not drawn yet has no inner text.
      const text = (part) => (part.innerText || part.textContent).trim();
      return [...document.querySelectorAll('.message')].map((one) => [one.classList.contains('user') ? 'you' : 'answer', text(one.querySelector('.typed') ?? one.querySelector(':scope > .prose'))]);
    });
  }

  chats() {
    return this.page.eval(() => [...document.querySelectorAll('.chat-title')].map((one) => one.textContent));
  }

  text(selector) {
    return this.page.eval((css) => document.querySelector(css)?.innerText ?? null, selector);
  }

  /** The label of what has the focus. */
  focus() {
    return this.page.eval(() => {
      const at = document.activeElement;
      return at.getAttribute('aria-label') ?? at.innerText?.trim() ?? at.id ?? at.localName;
    });
  }

  async waitText(selector, text) {
    await this.page.until((css, wanted) => document.querySelector(css)?.innerText.includes(wanted), selector, text);
  }
}
