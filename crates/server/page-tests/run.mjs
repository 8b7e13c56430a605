// Tests of the chat page in headless Chromium. Needs node 18 or later and a Chromium, and nothing from npm.
//
//   node run.mjs [--chromium PATH] [--url http://127.0.0.1:8080] [--key KEY] [--screenshots FOLDER] [--only TEXT]
//
// Without --url the page is served by a mock server with known answers. With it, tests that need those are skipped by name.
// `--only pictures` runs no test and takes the pictures.

import { mkdir } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { Browser } from './chrome.mjs';
import { Mock } from './mock.mjs';
import { Session } from './session.mjs';
import { TESTS as basics } from './basics.mjs';
import { TESTS as trouble } from './trouble.mjs';
import { TESTS as text } from './text.mjs';
import { takePictures } from './pictures.mjs';

const { values } = parseArgs({ options: { chromium: { type: 'string', default: 'chromium' }, url: { type: 'string' }, key: { type: 'string' }, screenshots: { type: 'string' }, only: { type: 'string', default: '' } } });

const all = [...basics, ...trouble, ...text];
const chosen = all.filter((test) => test.name.includes(values.only));
const mock = values.url ? null : new Mock();
const url = values.url?.replace(/\/$/, '') ?? (await mock.start());
const browser = await Browser.launch(values.chromium);
const tally = { passed: 0, failed: 0, skipped: 0 };
const begin = Date.now();

console.log(`running ${chosen.length} tests of the page at ${url}`);
for (const test of chosen) {
  if (test.canned && !mock) {
    tally.skipped += 1;
    console.log(`test page::${test.name} ... skipped: it needs the mock server's answers`);
    continue;
  }
  mock?.reset();
  const session = await Session.begin({ browser, url, mock, key: values.key });
  try {
    await test.run(session);
    session.nothingWentWrong();
    tally.passed += 1;
    console.log(`test page::${test.name} ... ok`);
  } catch (error) {
    tally.failed += 1;
    console.log(`test page::${test.name} ... FAILED\n    ${String(error.stack ?? error).replaceAll('\n', '\n    ')}`);
    if (session.page.errors.length) console.log(`    the page said: ${session.page.errors.join('\n    ')}`);
    if (values.screenshots) {
      await mkdir(values.screenshots, { recursive: true });
      await session.page.screenshot(`${values.screenshots}/failed-${test.name}.png`).catch(() => {});
    }
  } finally {
    await session.end();
  }
}
if (values.screenshots && mock && (!values.only || values.only === 'pictures')) {
  await mkdir(values.screenshots, { recursive: true });
  mock.reset();
  await takePictures({ browser, url, mock, folder: values.screenshots });
}
await browser.close();
mock?.stop();
const verdict = tally.failed ? 'FAILED' : 'ok';
console.log(`\ntest result: ${verdict}. ${tally.passed} passed; ${tally.failed} failed; 0 ignored; 0 measured; ${all.length - chosen.length + tally.skipped} filtered out; finished in ${((Date.now() - begin) / 1000).toFixed(2)}s`);
process.exit(tally.failed ? 1 : 0);
