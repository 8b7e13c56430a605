// What everybody does: ask, stop, edit, search, come back.

import assert from 'node:assert/strict';
import { sleep } from './chrome.mjs';

const test = (name, run, options = {}) => ({ name, run, ...options });
const canned = { canned: true };

export const TESTS = [
  test('sends_and_streams', async (s) => {
    await s.ask('hello');
    const [you, answer] = await s.messages();
    assert.deepEqual(you, ['you', 'hello']);
    assert.ok(answer[1].length > 0);
    assert.match(await s.page.eval(() => location.hash), /^#\/chat\/\w+/);
    assert.deepEqual(await s.chats(), ['hello']);
    assert.match(await s.text('.answer .stats summary'), /to first token/);
    assert.equal(await s.page.eval(() => document.querySelector('#prompt').value), '');
  }),

  test('figures_of_an_answer', async (s) => {
    await s.ask('hello');
    assert.match(await s.text('.answer .stats summary'), /41\.5 tok\/s · \d\.\d+ s to first token · CPU \(AVX2, 8 threads\)/);
    await s.page.click('.answer .stats summary');
    assert.match(await s.text('.stats dl'), /Prompt\s+\d+ tokens, \d+ of them cached[\s\S]*Answer\s+\d+ tokens/);
    assert.match(await s.text('#meter-text'), /^\d+ \/ 8,192$/);
    const request = s.mock.chats[0].body;
    assert.deepEqual(request.messages, [{ role: 'user', content: 'hello' }]);
    assert.deepEqual(request.stream_options, { include_usage: true });
    for (const name of ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed', 'stop']) assert.equal(request[name], undefined);
  }, canned),

  test('no_model_is_called_in_the_background', async (s) => {
    await s.ask('hello there, what is a unicorn and where do they live in these days of ours');
    await s.page.click('.user .actions button[aria-label^="Continue from here"]');
    await s.reload();
    await sleep(300);
    assert.equal(s.mock.chats.length, 1);
    assert.equal((await s.chats())[0], 'hello there, what is a unicorn and where do…');
  }, canned),

  test('stops_with_escape_and_with_the_button', async (s) => {
    await s.limit(4000);
    await s.send('Write an endless story about the number one, as long as you can. endless');
    await s.page.until(() => document.querySelector('.answer > .prose')?.innerText.length > 20);
    await s.page.press('Escape');
    await s.idle();
    await s.waitText('.answer', 'Stopped.');
    const kept = (await s.messages())[1][1];
    assert.ok(kept.length > 20);
    if (s.mock) {
      for (const begin = Date.now(); s.mock.closedEarly === 0; await sleep(20)) assert.ok(Date.now() - begin < 3000, 'the server was not told');
    }
    await s.send('Now an endless one about the number two. endless');
    await s.page.until(() => document.querySelectorAll('.answer').length === 2 && document.querySelectorAll('.answer > .prose')[1].innerText.length > 20);
    await s.page.click('#send');
    await s.idle();
    await s.reload();
    assert.equal((await s.messages())[1][1], kept);
  }),

  test('a_stopped_answer_goes_on', async (s) => {
    await s.limit(300);
    await s.send('Count from 1 to 300, one number a line, in an endless list. endless');
    await s.page.until(() => document.querySelector('.answer > .prose')?.innerText.length > 12);
    await s.page.press('Escape');
    await s.idle();
    const before = (await s.messages())[1][1];
    await s.page.click('.answer .ended .link-button');
    await s.page.until((n) => document.querySelector('.answer > .prose').innerText.length > n + 10, before.length);
    await s.idle();
    const [[, question], [, after]] = await s.messages();
    assert.ok(question.startsWith('Count') && after.startsWith(before.slice(0, 30)), `${before} became ${after}`);
    assert.equal(await s.text('.version-count'), null);
  }),

  test('edits_make_versions', async (s) => {
    await s.ask('first question');
    await s.ask('second question');
    await s.page.click('.user button[aria-label="Edit message"]', 0);
    await s.page.press('a', 'ctrl');
    await s.page.type('other question');
    await s.page.press('Enter');
    await s.page.until(() => document.querySelector('.typed')?.innerText === 'other question');
    await s.idle();
    assert.equal((await s.messages()).length, 2);
    assert.equal(await s.text('.user .version-count'), '2/2');
    await s.page.click('.user button[aria-label="Previous version"]');
    await s.page.until(() => document.querySelectorAll('.message').length === 4);
    assert.equal((await s.messages())[0][1], 'first question');
    assert.equal((await s.messages())[2][1], 'second question');
    await s.reload();
    assert.equal((await s.messages())[2][1], 'second question');
    assert.equal(await s.text('.user .version-count'), '1/2');
  }),

  test('an_edit_leaves_out_what_came_after', async (s) => {
    await s.ask('first question');
    await s.ask('second question');
    await s.page.click('.user button[aria-label="Edit message"]', 1);
    await s.page.press('a', 'ctrl');
    await s.page.type('changed question');
    await s.page.click('.edit-buttons .primary');
    await s.page.until(() => document.querySelectorAll('.typed')[1]?.innerText === 'changed question');
    await s.idle();
    assert.deepEqual(s.mock.chats[2].body.messages.map((one) => one.content), ['first question', 'You said: first question. That is all.', 'changed question']);
  }, canned),

  test('answers_again', async (s) => {
    await s.ask('hello');
    for (const total of [2, 3]) {
      await s.page.click('.answer button[aria-label="Answer again"]');
      await s.page.until((n) => document.querySelector('.answer .version-count')?.innerText === `${n}/${n}`, total);
      await s.idle();
    }
    await s.page.click('.answer button[aria-label="Previous version"]');
    await s.waitText('.answer .version-count', '2/3');
    assert.equal((await s.messages()).length, 2);
  }),

  test('forks_into_a_new_chat', async (s) => {
    await s.ask('first question');
    await s.ask('second question');
    const address = await s.page.eval(() => location.hash);
    await s.page.click('.answer button[aria-label^="Continue from here"]', 0);
    await s.page.until((old) => location.hash !== old && document.querySelectorAll('.message').length === 2, address);
    assert.equal((await s.chats()).length, 2);
    await s.ask('third question');
    assert.deepEqual((await s.messages()).map(([, text]) => text).filter((_, i) => i % 2 === 0), ['first question', 'third question']);
    await s.page.eval(() => history.back());
    await s.page.until(() => document.querySelectorAll('.message').length === 4 && document.querySelectorAll('.typed')[1].innerText === 'second question');
  }),

  test('searches_all_chats', async (s) => {
    await s.ask('the walrus and the carpenter');
    await s.newChat();
    await s.ask('a quite different thing');
    await s.page.press('k', 'ctrl');
    assert.equal(await s.focus(), 'Search all chats');
    await s.page.type('carpenter');
    await s.waitText('#chats h2', '1 found');
    assert.equal(await s.page.eval(() => document.querySelector('.snippet mark').textContent), 'carpenter');
    await s.page.press('Enter');
    await s.page.until(() => document.querySelector('.typed')?.innerText === 'the walrus and the carpenter');
    await s.page.click('#search');
    await s.page.press('a', 'ctrl');
    await s.page.type('nothing has this');
    await s.waitText('#chats h2', 'Nothing found');
    await s.page.press('Escape');
    await s.page.until(() => document.querySelectorAll('.chat-item').length === 2);
    assert.equal(await s.focus(), 'Message');
  }),

  test('search_finds_other_versions', async (s) => {
    await s.ask('first question');
    await s.page.click('.user button[aria-label="Edit message"]');
    await s.page.press('a', 'ctrl');
    await s.page.type('zebra question');
    await s.page.press('Enter');
    await s.page.until(() => document.querySelector('.typed')?.innerText === 'zebra question');
    await s.idle();
    await s.page.press('k', 'ctrl');
    await s.page.type('first q');
    await s.page.until(() => document.querySelector('.snippet mark'));
    await s.page.click('.chat-link');
    await s.page.until(() => document.querySelector('.typed')?.innerText === 'first question');
  }),

  test('renames_and_deletes', async (s) => {
    await s.ask('hello');
    await s.page.click('.chat-item .icon-button');
    await s.page.click('.menu button', 0);
    await s.page.press('a', 'ctrl');
    await s.page.type('My <b>title</b>');
    await s.page.press('Enter');
    await s.page.until(() => document.querySelector('.chat-title')?.textContent === 'My <b>title</b>');
    await s.reload();
    assert.deepEqual(await s.chats(), ['My <b>title</b>']);
    assert.equal(await s.page.eval(() => document.title), 'My <b>title</b> · Unicorn');
    await s.page.click('.chat-item .icon-button');
    await s.page.click('.menu .danger');
    await s.page.until(() => document.querySelectorAll('.chat-item').length === 0 && !document.querySelector('#welcome').hidden);
    await s.page.click('.toast .link-button');
    await s.page.until(() => document.querySelectorAll('.message').length === 2);
    assert.deepEqual(await s.chats(), ['My <b>title</b>']);
  }),

  test('exports_and_imports', async (s) => {
    await s.ask('hello export');
    await s.page.click('.answer button[aria-label="Answer again"]');
    await s.waitText('.answer', '2/2');
    await s.idle();
    const before = await s.messages();
    await s.page.click('#open-app-settings');
    const file = await s.page.download(() => s.page.click('#export-all'));
    assert.match(file.name, /^unicorn-[\d-]+\.json$/);
    const data = JSON.parse(file.text);
    assert.equal(data.chats[0].messages.length, 3);
    await s.page.click('#delete-all');
    await s.page.click('#confirm-yes');
    await s.waitText('#chats-count', '0 chats');
    await s.page.pick('#import-picker', ['in.json', file.text]);
    await s.waitText('#chats-count', 'One chat');
    await s.page.click('#app-settings footer .primary');
    await s.page.click('.chat-link');
    await s.page.until(() => document.querySelectorAll('.message').length === 2);
    assert.deepEqual(await s.messages(), before);
    assert.equal(await s.text('.answer .version-count'), '2/2');
    // Once more beside what is there: both are kept.
    await s.page.pick('#import-picker', ['in.json', file.text]);
    await s.page.until(() => document.querySelectorAll('.chat-item').length === 2);
  }),

  test('exports_and_duplicates_one_chat', async (s) => {
    await s.ask('first one');
    await s.newChat();
    await s.ask('second one');
    await s.page.click('.chat-item .icon-button', 1);
    const file = await s.page.download(() => s.page.click('.menu button', 2));
    assert.equal(file.name, 'unicorn-first-one.json');
    assert.deepEqual(JSON.parse(file.text).chats.map((chat) => chat.title), ['first one']);
    await s.page.until(() => !document.querySelector('.menu'));
    await s.page.click('.chat-item .icon-button', 1);
    await s.page.click('.menu button', 1);
    await s.page.until(() => document.querySelectorAll('.chat-item').length === 3 && document.querySelector('.typed')?.innerText === 'first one');
  }),

  test('imports_refuse_what_is_wrong', async (s) => {
    const node = (rest) => ({ id: 'a', parent: null, role: 'user', content: 'x', ...rest });
    const file = (...messages) => JSON.stringify({ format: 'unicorn-chats', version: 1, chats: [{ title: 't', messages }] });
    for (const [content, words] of [
      ['{', 'It is no JSON'],
      ['{"a": 1}', 'It holds no chats'],
      ['{"format": "unicorn-chats", "version": 9}', 'version 9'],
      [file(node({ role: 'admin' })), 'chat 1, message 1: "role"'],
      [file(node({ parent: 'zz' })), 'chat 1, message 1: "parent"'],
      [file(node({ parent: 'b' }), node({ id: 'b', parent: 'a' })), 'its own ancestor'],
      [file(node({ content: 5 })), '"content"'],
    ]) {
      await s.page.pick('#import-picker', ['bad.json', content]);
      await s.page.until((text) => [...document.querySelectorAll('.toast')].at(-1)?.innerText.includes(text), words);
    }
    assert.deepEqual(await s.chats(), []);
    await s.page.pick('#import-picker', ['list.json', JSON.stringify([{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'From another program' }, { role: 'assistant', content: [{ type: 'text', text: 'Yes.' }] }])]);
    await s.page.click('.chat-link');
    await s.page.until(() => document.querySelectorAll('.message').length === 2);
    assert.deepEqual(await s.messages(), [['you', 'From another program'], ['answer', 'Yes.']]);
  }),

  test('comes_back_after_a_reload', async (s) => {
    await s.ask('hello');
    await s.page.eval(() => document.querySelector('#prompt').focus());
    await s.page.type('a draft that is not sent');
    await sleep(500);
    await s.reload();
    await s.page.until(() => document.querySelector('#prompt').value === 'a draft that is not sent');
    assert.equal((await s.messages()).length, 2);
    await s.newChat();
    await s.page.until(() => document.querySelector('#prompt').value === '');
    await s.page.type('another draft');
    await s.page.click('.chat-link');
    await s.page.until(() => document.querySelector('#prompt').value === 'a draft that is not sent');
    await s.newChat();
    await s.page.until(() => document.querySelector('#prompt').value === 'another draft');
  }),

  test('keyboard_alone', async (s) => {
    await s.page.scheme('light');
    assert.equal(await s.focus(), 'Message');
    await s.page.type('line one');
    await s.page.press('Enter', 'shift');
    await s.page.type('line two');
    await s.page.press('Enter');
    await s.page.until(() => document.querySelectorAll('.answer').length === 1);
    await s.idle();
    assert.equal((await s.messages())[0][1], 'line one\nline two');
    await s.page.press('ArrowUp');
    await s.page.until(() => document.activeElement.getAttribute('aria-label') === 'Edit your message');
    await s.page.press('Escape');
    await s.page.until(() => !document.querySelector('.editing'));
    assert.equal(await s.focus(), 'Message');
    // Everything can be reached by Tab, is named, and shows its focus.
    await s.page.eval(() => document.activeElement.blur());
    const seen = new Set();
    for (let i = 0; i < 40; i++) {
      await s.page.press('Tab');
      const at = await s.page.eval(() => {
        const one = document.activeElement;
        const style = getComputedStyle(one);
        // The field at the foot shows its focus by the border around it.
        const ring = (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1) || (one.id === 'prompt' && getComputedStyle(one.form).borderColor === 'rgb(165, 151, 221)');
        return one === document.body ? null : { name: one.getAttribute('aria-label') ?? one.labels?.[0]?.innerText ?? one.innerText, ring };
      });
      if (!at) continue;
      assert.ok(at.name?.trim(), 'something without a name has the focus');
      assert.ok(at.ring, `${at.name} does not show its focus`);
      seen.add(at.name.trim());
    }
    for (const name of ['Skip to the message field', 'New chat', 'Search all chats', 'line one', 'More for line one', 'Settings', 'Settings of this chat', 'Copy message', 'Edit message', 'Copy answer', 'Answer again', 'Message', 'Add text files']) assert.ok(seen.has(name), `Tab does not reach "${name}": ${[...seen].join(', ')}`);
    await s.page.press('o', 'ctrl', 'shift');
    await s.page.until(() => document.querySelectorAll('.message').length === 0);
  }),

  test('versions_by_keyboard', async (s) => {
    await s.ask('hello');
    for (const total of [2, 3]) {
      await s.page.eval(() => document.querySelector('.answer button[aria-label="Answer again"]').focus());
      await s.page.press('Enter');
      await s.page.until((n) => document.querySelector('.answer .version-count')?.innerText === `${n}/${n}`, total);
      await s.idle();
    }
    await s.page.eval(() => document.querySelector('.answer button[aria-label="Previous version"]').focus());
    for (const [at, label] of [['2/3', 'Previous version'], ['1/3', 'Next version']]) {
      await s.page.press('Enter');
      await s.waitText('.answer .version-count', at);
      assert.equal(await s.focus(), label);
    }
  }),

  test('menus_by_keyboard', async (s) => {
    await s.ask('hello');
    await s.page.eval(() => document.querySelector('.chat-item .icon-button').focus());
    await s.page.press('Enter');
    await s.page.until(() => document.activeElement.innerText === 'Rename');
    await s.page.press('ArrowUp');
    assert.equal(await s.focus(), 'Delete');
    await s.page.press('Escape');
    await s.page.until(() => !document.querySelector('.menu'));
    assert.equal(await s.focus(), 'More for hello');
  }),

  test('answers_are_said_to_screen_readers', async (s) => {
    await s.ask('showcase');
    const said = await s.page.eval(() => ({ live: document.querySelector('#live').innerText, status: document.querySelector('#status').innerText, role: document.querySelector('#live').getAttribute('aria-live') }));
    assert.equal(said.role, 'polite');
    assert.equal(said.status, 'The answer is complete');
    assert.match(said.live, /Count what the kernel|share of the roof/i);
  }, canned),

  test('phone', async (s) => {
    await s.page.phone();
    await s.reload();
    const fits = () => s.page.eval(() => document.documentElement.scrollWidth <= innerWidth && innerWidth === 390);
    assert.ok(await fits());
    const tiny = await s.page.eval(() => [...document.querySelectorAll('input, textarea, select')].filter((one) => !['file', 'checkbox'].includes(one.type) && parseFloat(getComputedStyle(one).fontSize) < 16).map((one) => one.id));
    assert.deepEqual(tiny, [], 'phones zoom into smaller fields');
    await s.ask('hello');
    assert.ok(await fits());
    const covered = () => s.page.eval(() => document.querySelector('#sidebar').getBoundingClientRect().right > 10);
    assert.equal(await covered(), false);
    assert.equal(await s.page.eval(() => document.querySelector('#sidebar').inert), true);
    await s.page.click('#open-sidebar');
    await s.page.until(() => document.querySelector('#sidebar').getBoundingClientRect().left === 0);
    await s.page.click('.chat-link');
    await s.page.until(() => document.querySelector('#sidebar').getBoundingClientRect().right <= 0);
    await s.page.click('#open-sidebar');
    await s.page.until(() => document.querySelector('#sidebar').getBoundingClientRect().left === 0);
    await s.page.press('Escape');
    await s.page.until(() => document.querySelector('#sidebar').getBoundingClientRect().right <= 0);
    const small = await s.page.eval(() => [...document.querySelectorAll('#top button, #composer button, .message-foot button')].filter((one) => one.checkVisibility() && !one.closest('.versions')).map((one) => one.getBoundingClientRect()).filter((box) => box.width < 39 || box.height < 39).length);
    assert.equal(small, 0, 'buttons too small for a finger');
  }),

  test('colours', async (s) => {
    const page = () => s.page.eval(() => getComputedStyle(document.body).backgroundColor);
    await s.page.scheme('dark');
    assert.equal(await page(), 'rgb(25, 24, 22)');
    await s.page.scheme('light');
    assert.equal(await page(), 'rgb(250, 249, 247)');
    await s.page.click('#theme');
    await s.page.click('#theme');
    assert.equal(await page(), 'rgb(25, 24, 22)');
    await s.reload();
    assert.equal(await page(), 'rgb(25, 24, 22)');
    await s.page.click('#theme');
    assert.equal(await page(), 'rgb(250, 249, 247)');
  }),
];
