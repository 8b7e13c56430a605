// Pictures of the page, to be looked at: phone and desktop, dark and light.

import { Session } from './session.mjs';
import { sleep } from './chrome.mjs';

const OLD = ['Sourdough at 70 % hydration', 'Why does the GPU idle in decode?', 'A poem about lighthouses', 'Regex for ISO dates', 'Letter to the landlord', 'Explain RoPE scaling'];

/** Some chats of earlier days, for a list that looks like a list. */
function history() {
  const chats = OLD.map((title, i) => {
    const time = Date.now() - (i < 2 ? i + 1 : i * 30) * 3_600_000;
    return { id: `old${i}`, title, named: true, created: time, updated: time, settings: {}, choice: {}, messages: [{ id: 'm', parent: null, role: 'user', content: title, created: time }, { id: 'n', parent: 'm', role: 'assistant', content: 'Gladly.', created: time + 1, state: 'done' }] };
  });
  return JSON.stringify({ format: 'unicorn-chats', version: 1, chats });
}

export async function takePictures({ browser, url, mock, folder }) {
  for (const device of ['desktop', 'phone']) {
    for (const scheme of ['light', 'dark']) {
      mock.reset();
      const s = await Session.begin({ browser, url, mock });
      const shot = async (name) => {
        await sleep(350);
        await s.page.screenshot(`${folder}/${device}-${scheme}-${name}.png`);
      };
      await s.page.scheme(scheme);
      if (device === 'phone') await s.page.phone();
      await s.reload();
      await s.page.pick('#import-picker', ['old.json', history()]);
      await s.page.until(() => document.querySelectorAll('.chat-item').length === 6);
      await s.page.eval(() => document.querySelector('.toast')?.remove());
      await shot('welcome');
      await s.ask('Explain the roofline model to me, with a formula, a table and some Rust. Make it a showcase.');
      await s.page.eval(() => { document.querySelector('#scroller').scrollTop = 0; });
      await shot('answer-top');
      await s.page.eval(() => { document.querySelector('#scroller').scrollTop = 1e6; });
      await shot('answer-end');
      await s.ask('reason about bread');
      await s.page.click('.answer button[aria-label="Answer again"]', -1);
      await s.waitText('.answer:last-child', '2/2');
      await s.idle();
      await s.page.click('.reasoning summary');
      await s.page.eval(() => document.querySelector('.reasoning').scrollIntoView({ block: 'center' }));
      await shot('thoughts');
      await s.ask('use a tool for the weather');
      await s.page.eval(() => { document.querySelector('#scroller').scrollTop = 1e6; });
      await shot('tools');
      await s.page.click(device === 'phone' ? '#new-chat-top' : '#new-chat');
      await s.page.until(() => document.querySelectorAll('.message').length === 0);
      await s.ask('please cut off');
      await s.ask('fail 400');
      mock.busy = 9;
      await s.send('hello');
      await s.waitText('.answer:last-child .card', 'busy');
      await shot('errors');
      await s.page.press('Escape');
      await s.idle();
      mock.reset();
      await s.page.pick('#file-picker', ['notes.md', '# Notes\n'], ['a-rather-long-file-name-for-a-log-of-yesterday.log', 'x'.repeat(40_000)], ['photo.png', Buffer.from([0x89, 0x50, 0, 255])]);
      await s.page.until(() => document.querySelectorAll('.chip').length === 2);
      await s.page.type('What do these say?');
      await shot('files');
      await s.page.eval(() => document.querySelectorAll('.toast').forEach((one) => one.remove()));
      await s.ask('');
      await s.send('slow start');
      await s.waitText('.answer:last-child .waiting', '2 s');
      await shot('waiting');
      await s.idle();
      await s.page.click('#open-chat-settings');
      await shot('chat-settings');
      await s.page.press('Escape');
      if (device === 'phone') {
        await s.page.click('#open-sidebar');
        await shot('drawer');
      }
      await s.page.click('#open-app-settings');
      await shot('settings');
      await s.page.press('Escape');
      if (device === 'desktop') {
        await s.page.click('.chat-item .icon-button', 0);
        await shot('menu');
        await s.page.press('Escape');
        await s.page.press('k', 'ctrl');
        await s.page.type('e');
        await s.page.until(() => document.querySelector('.snippet'));
        await shot('search');
        await s.page.press('Escape');
        await s.page.click('.chat-link', 1);
        await s.page.click('.user button[aria-label="Edit message"]', 0);
        await shot('edit');
      }
      await s.end();
    }
  }
}
