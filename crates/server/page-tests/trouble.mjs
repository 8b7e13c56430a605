// What goes wrong, files, settings, and what the page makes of them.

import assert from 'node:assert/strict';
import { sleep } from './chrome.mjs';

const test = (name, run) => ({ name, run, canned: true });

export const TESTS = [
  test('a_reload_in_mid_answer', async (s) => {
    await s.send('endless');
    await s.page.until(() => document.querySelector('.answer > .prose')?.innerText.length > 1000);
    await s.reload();
    await s.waitText('.answer .card', 'This answer was cut off');
    const [, [, kept]] = await s.messages();
    assert.ok(kept.startsWith('word0 word1') && kept.length > 400, kept);
    await s.page.click('.answer .card button', 0);
    await s.page.until(() => document.querySelector('.answer > .prose').innerText.endsWith('and this is the rest.'));
    await s.idle();
    const { messages, continue_final_message: goOn, add_generation_prompt: anew } = s.mock.chats[1].body;
    assert.deepEqual([messages.length, messages[1].role, messages[1].content.startsWith('word0'), goOn, anew], [2, 'assistant', true, true, false]);
    assert.equal((await s.messages()).length, 2);
  }),

  test('another_tab_sees_the_answer', async (s) => {
    await s.send('endless');
    await s.page.until(() => document.querySelector('.answer > .prose')?.innerText.length > 20);
    const other = await s.browser.page(s.page.context);
    await other.go(s.url + (await s.page.eval(() => `/${location.hash}`)));
    await other.until(() => document.querySelector('.answer .card')?.innerText.includes('in another tab'));
    await s.page.send('Page.bringToFront');
    await s.page.press('Escape');
    await other.until(() => document.querySelector('.answer')?.innerText.includes('Stopped.'));
    assert.deepEqual(other.errors, []);
    await other.close();
  }),

  test('chats_answer_side_by_side', async (s) => {
    await s.send('endless one');
    await s.page.until(() => document.querySelector('.answer > .prose')?.innerText.length > 20);
    await s.newChat();
    assert.equal(await s.page.eval(() => document.querySelectorAll('.pulse').length), 1);
    await s.ask('hello');
    assert.equal((await s.messages())[1][1], 'Hello! How can I help you today?');
    await s.page.click('.chat-link', 1);
    await s.page.until(() => document.querySelector('.typed')?.innerText === 'endless one' && document.querySelector('.answer.running > .prose')?.innerText.length > 100);
    await s.page.press('Escape');
    await s.idle();
    assert.equal(await s.page.eval(() => document.querySelectorAll('.pulse').length), 0);
  }),

  test('the_connection_breaks', async (s) => {
    await s.ask('please cut off');
    await s.waitText('.answer .card', 'The connection was lost');
    assert.equal((await s.messages())[1][1], 'The beginning of an answer');
    await s.page.click('.answer .card button', 0);
    await s.page.until(() => document.querySelector('.answer > .prose').innerText === 'The beginning of an answer and this is the rest.');
  }),

  test('the_server_is_gone', async (s) => {
    s.mock.dead = true;
    await s.ask('hello');
    await s.waitText('.answer .card', 'The server cannot be reached');
    assert.equal(await s.page.eval(() => document.querySelector('.answer .card').getAttribute('role')), 'alert');
    s.mock.dead = false;
    await s.page.click('.answer .card button');
    await s.page.until(() => document.querySelector('.answer > .prose').innerText.startsWith('Hello!'));
    await s.idle();
    assert.equal((await s.messages()).length, 2);
    assert.equal(await s.text('.version-count'), null);
  }),

  test('the_server_starts_after_the_page', async (s) => {
    s.mock.dead = true;
    await s.page.reload();
    await s.waitText('#banner', 'The server cannot be reached');
    s.mock.dead = false;
    await s.page.until(() => document.querySelector('#banner').hidden && document.querySelector('#model').value === 'mock-small');
  }),

  test('a_busy_server', async (s) => {
    s.mock.busy = 1;
    await s.send('hello');
    await s.waitText('.answer .card', 'The server is busy');
    assert.match(await s.text('.answer .card'), /The queue is full\. Trying again in [12] s\./);
    await s.page.until(() => document.querySelector('.answer > .prose').innerText.startsWith('Hello!'));
    assert.equal(s.mock.chats.length, 2);
    s.mock.busy = 1;
    await s.idle();
    await s.send('hello again');
    await s.page.until(() => document.querySelectorAll('.answer')[1]?.innerText.includes('busy'));
    await s.page.click('.answer .card button', 1);
    await s.idle();
    await s.waitText('.answer:last-child', 'Stopped.');
  }),

  test('a_model_that_loads', async (s) => {
    s.mock.loading = 3;
    await s.send('hello');
    await s.waitText('.answer .card', 'Loading mock-large… ');
    assert.ok(await s.page.eval(() => document.querySelector('.answer progress').value > 0));
    await s.page.until(() => document.querySelector('.answer > .prose').innerText.startsWith('Hello!'));
  }),

  test('a_model_that_is_loaded_for_the_request', async (s) => {
    s.mock.unloaded = true;
    await s.reload();
    assert.ok(await s.page.eval(() => document.querySelector('#meter').hidden));
    s.mock.loading = 2;
    await s.send('hello');
    await s.waitText('.answer .card', 'Loading mock-large… ');
    await s.page.until(() => document.querySelector('.answer > .prose').innerText.startsWith('Hello!'));
    await s.idle();
    await s.waitText('.stats summary', 'CPU (AVX2, 8 threads)');
    assert.match(await s.text('#meter-text'), /\/ 8,192$/);
  }),

  test('a_model_that_cannot_be_loaded', async (s) => {
    s.mock.sick = 'the model cannot be loaded';
    await s.ask('hello');
    await s.waitText('.answer .card', 'The server cannot answer');
    await s.waitText('.answer .card', 'the model cannot be loaded: its file is gone');
  }),

  test('a_key_is_asked_for', async (s) => {
    s.mock.key = 'secret-key';
    await s.ask('hello');
    await s.waitText('.answer .card', 'This server asks for an API key');
    await s.page.click('.answer .card button', 0);
    await s.page.until(() => document.activeElement.id === 'api-key');
    await s.page.type('secret-key');
    await s.page.press('Enter');
    await s.page.until(() => document.querySelector('.answer > .prose').innerText.startsWith('Hello!'));
    assert.equal(s.mock.chats.at(-1).authorization, 'Bearer secret-key');
    assert.equal(await s.page.eval(() => JSON.stringify(localStorage).includes('secret-key')), false);
    await s.page.reload();
    await s.waitText('#banner', 'asks for an API key');
    await s.page.click('#banner button');
    await s.page.type('secret-key');
    await s.page.click('#keep-key');
    await s.page.click('#app-settings footer .primary');
    await s.page.until(() => document.querySelector('#banner').hidden);
    await s.reload();
    await s.page.until(() => document.querySelector('#model').value === 'mock-small');
    // A key is no part of what is exported.
    await s.page.click('#open-app-settings');
    const file = await s.page.download(() => s.page.click('#export-all'));
    assert.equal(file.text.includes('secret-key'), false);
  }),

  test('errors_are_readable', async (s) => {
    await s.ask('fail 400');
    await s.waitText('.answer .card', 'The prompt has 9000 tokens; the context has 8192.');
    await s.ask('server error');
    await s.page.until(() => document.querySelectorAll('.answer')[1].innerText.includes('The device was lost.'));
    assert.equal((await s.messages())[3][1], 'Some words');
    await s.ask('too long');
    await s.page.until(() => document.querySelectorAll('.answer')[2].innerText.includes('The limit of tokens is reached.'));
    // What failed before its first word is no part of the conversation.
    assert.deepEqual(s.mock.chats.at(-1).body.messages.map((one) => one.role), ['user', 'user', 'assistant', 'user']);
  }),

  test('waiting_is_told', async (s) => {
    await s.send('slow start');
    await s.waitText('.answer .waiting', 'Reading the prompt… ');
    await s.page.until(() => document.querySelector('.answer > .prose').innerText === 'Here at last.');
    await s.idle();
    assert.match(await s.text('.stats summary'), /3\.\d s to first token/);
  }),

  test('without_props_and_timings', async (s) => {
    s.mock.noProps = true;
    await s.reload();
    await s.ask('hello');
    assert.match(await s.text('.stats summary'), /^41\.5 tok\/s · [\d.]+ s to first token$/);
    assert.match(await s.text('#meter-text'), /\/ 8,192$/);
  }),

  test('settings_of_a_chat', async (s) => {
    await s.ask('hello');
    await s.page.click('#open-chat-settings');
    assert.equal(await s.page.eval(() => document.querySelector('#set-temperature').placeholder), '0.7');
    assert.equal(await s.page.eval(() => document.querySelector('#set-seed').placeholder), 'automatic');
    const fill = async (id, text) => {
      await s.page.eval((name) => document.getElementById(name).focus(), id);
      await s.page.press('a', 'ctrl');
      await s.page.type(text);
    };
    const given = { 'set-system': 'Be brief.', 'set-temperature': '0.25', 'set-top_p': '0.9', 'set-top_k': '20', 'set-min_p': '0.1', 'set-max_tokens': '77', 'set-seed': '42' };
    for (const [id, text] of Object.entries(given)) await fill(id, text);
    await s.page.eval(() => document.querySelector('#set-stop').focus());
    await s.page.type('END');
    await s.page.eval(() => { document.querySelector('.more').open = true; });
    await fill('set-extra', '{"repeat_penalty": 1.1}');
    await fill('set-top_k', '2.5');
    assert.equal(await s.text('#set-top_k-hint'), 'A whole number, please');
    assert.equal(await s.page.eval(() => document.querySelector('#set-top_k').getAttribute('aria-invalid')), 'true');
    await fill('set-extra', '{"stream": false}');
    assert.match(await s.text('#set-extra-problem'), /"stream" is set by this page/);
    await s.page.click('#chat-settings footer .primary');
    await sleep(200);
    await s.reload();
    await s.ask('hello again');
    const { body } = s.mock.chats.at(-1);
    assert.deepEqual(body.messages[0], { role: 'system', content: 'Be brief.' });
    const { temperature, top_p, top_k, min_p, max_tokens, seed, stop, repeat_penalty } = body;
    assert.deepEqual({ temperature, top_p, top_k, min_p, max_tokens, seed, stop, repeat_penalty }, { temperature: 0.25, top_p: 0.9, top_k: 20, min_p: 0.1, max_tokens: 77, seed: 42, stop: ['END'], repeat_penalty: 1.1 });
    // Another chat has its own.
    await s.newChat();
    await s.ask('hello');
    assert.equal(s.mock.chats.at(-1).body.temperature, undefined);
  }),

  test('settings_for_new_chats', async (s) => {
    await s.page.click('#open-chat-settings');
    await s.page.eval(() => document.querySelector('#set-temperature').focus());
    await s.page.type('1.5');
    await s.page.click('#keep-settings');
    await s.page.click('#chat-settings footer .primary');
    await s.reload();
    await s.ask('hello');
    assert.equal(s.mock.chats.at(-1).body.temperature, 1.5);
    await s.page.click('#open-chat-settings');
    await s.page.click('#reset-settings');
    await s.page.click('#chat-settings footer .primary');
    await s.ask('hello');
    assert.equal(s.mock.chats.at(-1).body.temperature, undefined);
  }),

  test('the_model_is_chosen', async (s) => {
    await s.page.eval(() => {
      const select = document.querySelector('#model');
      select.value = 'mock-large';
      select.dispatchEvent(new Event('change', { bubbles: true }));
    });
    await s.ask('hello');
    assert.equal(s.mock.chats[0].body.model, 'mock-large');
    assert.match(await s.text('#meter-text'), /\/ 32,768$/);
    await s.reload();
    assert.equal(await s.page.eval(() => document.querySelector('#model').value), 'mock-large');
  }),

  test('a_browser_that_keeps_nothing', async (s) => {
    await s.page.send('Page.addScriptToEvaluateOnNewDocument', { source: `
      Object.defineProperty(window, 'indexedDB', { value: { open() { throw new Error('not in this window'); } } });
      Object.defineProperty(window, 'localStorage', { get() { throw new Error('not in this window'); } });` });
    await s.reload();
    await s.waitText('.toast', 'Chats are lost when this page closes, since the browser cannot keep them: not in this window.');
    await s.ask('hello');
    await s.newChat();
    await s.ask('hello again');
    await s.page.click('.chat-link', 1);
    await s.page.until(() => document.querySelector('.typed')?.innerText === 'hello');
    await s.page.click('#theme');
    assert.deepEqual(await s.chats(), ['hello again', 'hello']);
  }),

  test('a_full_storage', async (s) => {
    await s.ask('hello');
    await s.page.eval(() => { IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); }; });
    await s.ask('hello again');
    await s.waitText('.toast', 'The browser’s storage is full');
    assert.equal((await s.messages()).length, 4);
    assert.equal(await s.page.eval(() => document.querySelectorAll('.toast').length), 1);
  }),

  test('a_message_that_is_too_long', async (s) => {
    await s.page.type('word '.repeat(10_000));
    assert.match(await s.text('#meter-text'), /^≈ 13,158 \/ 8,192 · too long$/);
    assert.ok(await s.page.eval(() => document.querySelector('#meter').classList.contains('full')));
    assert.equal(await s.page.eval(() => document.querySelector('#meter').getAttribute('aria-valuenow')), '8192');
  }),

  test('files_are_dropped', async (s) => {
    await s.page.drop(['notes.md', '# Notes\n```js\n1\n```\n'], ['../<img src=x onerror=alert(1)>.txt', 'evil name']);
    await s.page.until(() => document.querySelectorAll('.chip').length === 2);
    assert.equal(await s.page.eval(() => document.querySelectorAll('.chip img').length), 0);
    await s.page.drop(['photo.png', Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 1, 2, 255])], ['big.txt', 'x'.repeat(600 * 1024)], ['empty.txt', '']);
    const toasts = () => s.page.eval(() => [...document.querySelectorAll('.toast span')].map((one) => one.textContent));
    await s.page.until(() => document.querySelectorAll('.toast').length === 3);
    assert.deepEqual(await toasts(), ['“photo.png” is no text file (image/png). Only text can be added.', '“big.txt” has 600 KB; the most is 512 KB.', '“empty.txt” is empty.']);
    await s.page.click('.chip button', 1);
    assert.equal(await s.page.eval(() => document.querySelectorAll('.chip').length), 1);
    await sleep(400);
    await s.reload();
    await s.page.until(() => document.querySelectorAll('.chip').length === 1);
    await s.ask('hello with a file');
    assert.equal(s.mock.chats[0].body.messages[0].content, 'hello with a file\n\nFile `notes.md`:\n````\n# Notes\n```js\n1\n```\n````');
    assert.match(await s.text('.user .file summary'), /notes\.md/);
  }),

  test('thoughts_are_folded', async (s) => {
    await s.ask('reason about bread');
    const { open, title } = await s.page.eval(() => ({ open: document.querySelector('.reasoning').open, title: document.querySelector('.reasoning summary').innerText }));
    assert.equal(open, false);
    assert.match(title, /^Thought for [\d.]+ s$/);
    assert.equal((await s.messages())[1][1], 'Use 350 g of water for 500 g of flour.');
    await s.page.click('.reasoning summary');
    await s.waitText('.thoughts', 'flour 500 g');
    assert.equal(await s.page.eval(() => document.querySelector('.thoughts strong').textContent), 'bread');
    // Thoughts are not sent back.
    await s.ask('hello');
    assert.deepEqual(s.mock.chats[1].body.messages[1], { role: 'assistant', content: 'Use 350 g of water for 500 g of flour.' });
  }),

  test('tool_calls', async (s) => {
    await s.ask('use a tool');
    assert.deepEqual(await s.page.eval(() => [...document.querySelectorAll('.call')].map((one) => one.innerText.replace(/\s+/g, ' ').trim())), ['Calls get_weather { "city": "Lisbon", "unit": "celsius", "days": 3 }', 'Calls get_time { "zone": "Europe/Lisbon" }']);
    await s.page.click('.results textarea', 0);
    await s.page.type('sunny, hello');
    await s.page.click('.results textarea', 1);
    await s.page.type('noon, hello');
    await s.page.click('.results button');
    await s.page.until(() => document.querySelectorAll('.answer').length === 2);
    await s.idle();
    const { messages } = s.mock.chats[1].body;
    assert.deepEqual(messages.slice(2), [{ role: 'tool', tool_call_id: 'call_a', content: 'sunny, hello' }, { role: 'tool', tool_call_id: 'call_b', content: 'noon, hello' }]);
    assert.deepEqual(messages[1].tool_calls[1], { id: 'call_b', type: 'function', function: { name: 'get_time', arguments: '{"zone": "Europe/Lisbon"}' } });
  }),

  test('a_long_conversation_stays_smooth', async (s) => {
    const messages = [];
    for (let i = 0; i < 300; i++) messages.push({ role: 'user', content: `Question ${i}` }, { role: 'assistant', content: `## Answer ${i}\n\nSome **text** with \`code\` and $x_{${i}}^2$.\n\n\`\`\`js\nconst a = ${i};\n\`\`\`\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | ${i} |` });
    await s.page.pick('#import-picker', ['long.json', JSON.stringify(messages)]);
    await s.page.until(() => document.querySelectorAll('.chat-item').length === 1);
    const opened = await s.page.eval(async () => {
      const begin = performance.now();
      document.querySelector('.chat-link').click();
      while (document.querySelectorAll('.message').length < 600) await new Promise(requestAnimationFrame);
      return performance.now() - begin;
    });
    assert.ok(opened < 2500, `opening took ${opened} ms`);
    await s.page.eval(() => {
      window.longest = 0;
      new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration); }).observe({ entryTypes: ['longtask'] });
    });
    await s.send('flood');
    await s.page.until(() => document.querySelectorAll('.answer').length === 301 && document.querySelector('.answer:last-child > .prose .code'));
    await s.page.until(() => document.querySelector('.answer:last-child .actions'));
    const longest = await s.page.eval(() => window.longest);
    assert.ok(longest < 400, `one task took ${longest} ms while an answer came`);
    // Reading further up is left alone, and remembered.
    await s.page.eval(() => { document.querySelector('#scroller').scrollTop = 20_000; });
    await sleep(700);
    const place = () => s.page.eval(() => {
      const line = document.querySelector('#scroller').getBoundingClientRect().top;
      const first = [...document.querySelectorAll('.message')].find((one) => one.getBoundingClientRect().bottom > line);
      return [first.innerText.split('\n')[0], Math.round(first.getBoundingClientRect().top - line)];
    });
    const before = await place();
    await s.reload();
    await s.page.until(() => document.querySelectorAll('.message').length === 602);
    await sleep(400);
    const after = await place();
    assert.equal(after[0], before[0]);
    assert.ok(Math.abs(after[1] - before[1]) < 40, `${before} became ${after}`);
  }),

  test('who_scrolls_up_is_left_alone', async (s) => {
    await s.send('endless');
    await s.page.until(() => document.querySelector('#scroller').scrollHeight > document.querySelector('#scroller').clientHeight + 500);
    await s.page.send('Input.dispatchMouseEvent', { type: 'mouseWheel', x: 700, y: 400, deltaX: 0, deltaY: -300 });
    await s.page.until(() => !document.querySelector('#jump').hidden);
    const top = await s.page.eval(() => document.querySelector('#scroller').scrollTop);
    await sleep(500);
    assert.equal(await s.page.eval(() => document.querySelector('#scroller').scrollTop), top);
    await s.page.click('#jump');
    await sleep(300);
    assert.ok(await s.page.eval(() => { const one = document.querySelector('#scroller'); return one.scrollHeight - one.scrollTop - one.clientHeight < 60; }));
    await s.page.press('Escape');
    await s.idle();
  }),
];
