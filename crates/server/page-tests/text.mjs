// Markdown, code and mathematics: what they become, that nothing in them runs, and that they take no time.

import assert from 'node:assert/strict';
import { SHOWCASE } from './answers.mjs';

const test = (name, run, options = { canned: true }) => ({ name, run, ...options });

/** Markdown as a short form of its elements. */
const SHAPE = `const shape = (node) => node.nodeType === 3 ? node.data : node.localName === 'svg' ? '' : \`<\${node.localName}>\${[...node.childNodes].map(shape).join('')}</\${node.localName}>\`;`;

async function shapes(s, sources) {
  return s.page.eval(`(async () => {
    const { MarkdownView } = await import('/page/markdown.js');
    ${SHAPE}
    return ${JSON.stringify(sources)}.map((text) => { const root = document.createElement('div'); new MarkdownView(root).update(text); return [...root.childNodes].map(shape).join(''); });
  })()`);
}

export const TESTS = [
  test('nothing_in_an_answer_runs', async (s) => {
    await s.ask('xss <img src=x onerror=window.pwned=20> <script>window.pwned=21</script>');
    await s.waitText('.answer', 'Done.');
    const found = await s.page.eval(() => ({
      pwned: window.pwned ?? null,
      bad: document.querySelectorAll('#messages script, #messages img, #messages iframe, #messages svg[onload], #messages [onerror], #messages [onmouseover]').length,
      links: [...document.querySelectorAll('#messages a')].map((one) => [one.protocol, one.rel, one.target]),
      code: document.querySelector('.code code').textContent,
    }));
    assert.equal(found.pwned, null);
    assert.equal(found.bad, 0);
    assert.ok(found.links.length >= 1 && found.links.every(([protocol, rel, target]) => protocol === 'https:' && rel.includes('noopener') && target === '_blank'));
    assert.equal(found.code, '<script>window.pwned = 10</script>');
    assert.match((await s.messages())[0][1], /<script>window\.pwned=21<\/script>/);
  }),

  test('the_policy_blocks_inline_scripts', async (s) => {
    const ran = await s.page.eval(() => {
      const script = document.createElement('div');
      try {
        script.innerHTML = '<img src=x onerror="window.pwned = 1">';
        return 'text became HTML';
      } catch (error) {
        return error.name;
      }
    });
    assert.equal(ran, 'TypeError');
    s.page.errors.length = 0;
  }, {}),

  test('markdown', async (s) => {
    const cases = {
      'a *b* **c** ***d*** ~~e~~ `f`': '<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del> <code>f</code></p>',
      'snake_case_name and 2*3*4': '<p>snake_case_name and 2<em>3</em>4</p>',
      '**bold:** text': '<p><strong>bold:</strong> text</p>',
      '# One\n## Two ##\nThree\n===': '<h1>One</h1><h2>Two</h2><h1>Three</h1>',
      'line\nbreak\n\nnext': '<p>line<br></br>break</p><p>next</p>',
      '- a\n- b\n  - c\n    1. d\n- e': '<ul><li><span>a</span></li><li><span>b</span><ul><li><span>c</span><ol><li><span>d</span></li></ol></li></ul></li><li><span>e</span></li></ul>',
      '1. a\n  - b\n2. c': '<ol><li><span>a</span><ul><li><span>b</span></li></ul></li><li><span>c</span></li></ol>',
      '- [x] a\n- [ ] b': '<ul><li><input></input><span>a</span></li><li><input></input><span>b</span></li></ul>',
      '> a\n> > b\n\nc': '<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>',
      'x\n\n---\n\ny': '<p>x</p><hr></hr><p>y</p>',
      'see\n| a | b |\n|---|--:|\n| `x|y` | 2 |\n| \\| |': '<p>see</p><div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td><code>x|y</code></td><td>2</td></tr><tr><td>|</td><td></td></tr></tbody></table></div>',
      '[a](https://x.example/y_(z) "t") https://x.example/a_b. <https://x.example>': '<p><a>a</a> <a>https://x.example/a_b</a>. <a>https://x.example</a></p>',
      '![pic](https://x.example/p.png)': '<p><a>pic</a></p>',
      '[a](javascript:alert(1)) <b>x</b> &lt;i&gt; &#65;': '<p><span>a</span> <b>x</b> <i> A</p>',
      'costs $5 and $10, or \\$3': '<p>costs $5 and $10, or $3</p>',
      '\\*no\\* `` a`b ``': '<p>*no* <code>a`b</code></p>',
      'a<br>b': '<p>a<br></br>b</p>',
      '': '',
    };
    assert.deepEqual(Object.fromEntries((await shapes(s, Object.keys(cases))).map((shape, i) => [Object.keys(cases)[i], shape])), cases);
  }),

  test('code_is_coloured_and_copied', async (s) => {
    await s.ask('showcase');
    const { kinds, text } = await s.page.eval(() => ({ kinds: [...new Set([...document.querySelectorAll('.code code span')].map((one) => one.className))], text: document.querySelector('.code code').textContent }));
    for (const kind of ['t-keyword', 't-comment', 't-number', 't-name', 't-type']) assert.ok(kinds.includes(kind), `${kind} is missing: ${kinds}`);
    assert.ok(SHOWCASE.includes(text) && text.startsWith('/// Share') && text.endsWith('}'));
    await s.browser.send('Browser.grantPermissions', { permissions: ['clipboardReadWrite', 'clipboardSanitizedWrite'], browserContextId: s.page.context });
    await s.page.click('.copy-code');
    await s.waitText('.copy-code', 'Copied');
    assert.equal(await s.page.eval(() => navigator.clipboard.readText()), text);
    await s.page.click('.answer button[aria-label="Copy answer"]');
    await s.page.until((all) => navigator.clipboard.readText().then((copied) => copied === all), SHOWCASE);
  }),

  test('every_language_keeps_every_character', async (s) => {
    const bad = await s.page.eval(async (sample) => {
      const { tokenize } = await import('/page/highlight.js');
      const languages = 'js ts rust python c cpp java go kotlin php ruby bash json yaml toml html css diff sql lua haskell csharp unknown'.split(' ');
      return languages.filter((language) => tokenize(sample, language).map(([, text]) => text).join('') !== sample);
    }, 'fn a<\'b>(x: &\'b str) -> "s\\"t" /* c */ // d\n# e\n"""f\ng"""\n@deco\n<tag a="b">\n$v ${w} --flag\nkey: 1.5e3\n`t ${u}`\n\'c\' \u{1d54f}😀 0xff 1_000 -- z\n[sec]\n+ a\n- b');
    assert.deepEqual(bad, []);
  }),

  test('mathematics', async (s) => {
    const found = await s.page.eval(async () => {
      const { toMathML } = await import('/page/math.js');
      const shape = (node) => (node.nodeType === 3 ? node.data : node.localName === 'annotation' ? '' : `${node.localName}(${[...node.childNodes].map(shape).join(' ')})`);
      const core = (tex, display) => {
        try {
          return shape(toMathML(tex, display).firstChild.firstChild);
        } catch (error) {
          return `refused: ${error.message}`;
        }
      };
      return {
        fraction: core('\\frac{a}{b}'), root: core('\\sqrt[3]{x}'), scripts: core('x_i^{23}'), digit: core('x^23'), greek: core('\\alpha\\Omega'), sum: core('\\sum_{i=1}^n i', true), inline: core('\\sum_{i=1}^n i', false),
        matrix: core('\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}'), real: core('\\mathbb{R}'), text: core('\\text{if } x'), fences: core('\\left( x \\right]'), prime: core("f'(x)"), aligned: core('a &= b \\\\ c &= d', true), limit: core('\\lim_{x \\to 0}', true),
        unknown: core('\\unknown x'), open: core('\\frac{a}{b'), stray: core('a}'), deep: core('{'.repeat(100) + '}'.repeat(100)),
      };
    });
    assert.deepEqual(found, {
      fraction: 'mfrac(mi(a) mi(b))', root: 'mroot(mi(x) mn(3))', scripts: 'msubsup(mi(x) mi(i) mn(23))', digit: 'mrow(msup(mi(x) mn(2)) mn(3))', greek: 'mrow(mi(α) mi(Ω))',
      sum: 'mrow(munderover(mo(∑) mrow(mi(i) mo(=) mn(1)) mi(n)) mi(i))', inline: 'mrow(msubsup(mo(∑) mrow(mi(i) mo(=) mn(1)) mi(n)) mi(i))',
      matrix: 'mrow(mo(() mtable(mtr(mtd(mn(1)) mtd(mn(2))) mtr(mtd(mn(3)) mtd(mn(4)))) mo()))', real: 'mi(ℝ)', text: 'mrow(mtext(if\u00a0) mi(x))', fences: 'mrow(mo(() mi(x) mo(]))', prime: 'mrow(msup(mi(f) mo(′)) mo(() mi(x) mo()))',
      aligned: 'mtable(mtr(mtd(mi(a)) mtd(mrow(mo(=) mi(b)))) mtr(mtd(mi(c)) mtd(mrow(mo(=) mi(d)))))', limit: 'munder(mrow(mi(lim)) mrow(mi(x) mo(→) mn(0)))',
      unknown: 'refused: \\unknown is not known here', open: 'refused: } is missing', stray: 'refused: } is out of place', deep: 'refused: nested too deep',
    });
    assert.match((await shapes(s, ['$\\unknown{x}$']))[0], /^<p><code>\$\\unknown\{x\}\$<\/code><\/p>$/);
  }),

  test('streaming_ends_in_what_is_shown_at_once', async (s) => {
    const bad = await s.page.eval(async (text) => {
      const { MarkdownView } = await import('/page/markdown.js');
      const html = (root) => root.outerHTML;
      const whole = document.createElement('div');
      new MarkdownView(whole).update(text);
      const out = [];
      for (let seed = 1; seed <= 25; seed++) {
        const root = document.createElement('div');
        const view = new MarkdownView(root);
        let state = seed;
        for (let at = 0; at < text.length;) {
          state = (state * 1103515245 + 12345) % 2147483648;
          at += 1 + (state % (seed * 3));
          view.update(text.slice(0, at));
        }
        root.normalize();
        const expected = whole.cloneNode(true);
        expected.normalize();
        if (html(root) !== html(expected)) out.push(seed);
      }
      return out;
    }, `${SHOWCASE}\n\npara\n# not #tag\n#tag\n\n1. a\n\n   b\n2. c\n\n\`\`\`python\n'''doc\n- x\n'''\nx = 1\n\n\n# c\n\`\`\`\ntext\n| a |\n|---|\n| b |\nlast\n===\n$$\na\n$$\nend`);
    assert.deepEqual(bad, []);
  }),

  test('hostile_text_takes_no_time', async (s) => {
    const slow = await s.page.eval(async () => {
      const { MarkdownView } = await import('/page/markdown.js');
      const { toMathML } = await import('/page/math.js');
      const out = {};
      const pieces = ['[', '![', '[a](', '*', '**a', '_a ', '`', '`a', '``` ', '> ', '- ', '1. ', '  - a\n', '$', '$a', '$$a\n', '\\(', '\\[a\n', '|', '|a|b\n|-|-\n', '<', '<a ', '&', '&amp;', 'http://', 'https://a.b/(', '#', '# a #', '~~', '\\', '{', ' ', '\n', '\t', '```js\n', '"', '/*', "'''", '😀', '***a** b* '];
      for (const piece of pieces) {
        const text = piece.repeat(Math.ceil(60_000 / piece.length));
        const begin = performance.now();
        new MarkdownView(document.createElement('div')).update(text);
        new MarkdownView(document.createElement('div')).update(`\`\`\`rust\n${text}`);
        new MarkdownView(document.createElement('div')).update(`\`\`\`html\n${text}`);
        try {
          toMathML(text.slice(0, 4000), true);
        } catch (error) {
          if (error instanceof RangeError) out[piece] = 'the stack is too small';
        }
        const took = performance.now() - begin;
        if (took > 1500) out[piece] = Math.round(took);
      }
      return out;
    });
    assert.deepEqual(slow, {});
  }),
];
