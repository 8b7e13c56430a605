// What the mock server answers.

export const SHOWCASE = `A **roofline** tells how fast a kernel could be: it is bound by memory or by arithmetic, whichever is less.

## The model

With intensity $I$ in operations a byte, peak $\\pi$ and bandwidth $\\beta$:

$$
P(I) = \\min\\left(\\pi,\\; \\beta \\cdot I\\right), \\qquad I^{*} = \\frac{\\pi}{\\beta} = \\sqrt{\\frac{\\sum_{i=1}^{n} w_i^2}{n}}
$$

| Device | Bandwidth | Peak | Ridge |
| :--- | ---: | ---: | :---: |
| EPYC, 2 cores | 18 GB/s | 0.2 TFLOP/s | 11 |
| Radeon 780M | 89 GB/s | 8.3 TFLOP/s | 93 |
| H100 | 3,350 GB/s | 989 TFLOP/s | 295 |

1. Measure the bandwidth with a plain copy
   - large buffers, *cold* caches
   - the median of five
2. Count what the kernel \`must\` read
3. Divide

\`\`\`rust
/// Share of the roof that a kernel reaches.
pub fn share(bytes: u64, seconds: f64, roof: Roof) -> Option<f64> {
    let rate = bytes as f64 / seconds; // bytes a second
    (roof.bandwidth > 0.0).then(|| rate / roof.bandwidth)
}
\`\`\`

> A claim about speed is a ratio measured side by side, or a share of a measured limit.

More in [the paper](https://doi.org/10.1145/1498765.1498785), and ~~nowhere~~ everywhere else.`;

const XSS = `<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 2">
[click](javascript:window.pwned=3) [data](data:text/html,<script>window.pwned=4</script>)
![pic](https://evil.example/log.png?secret) <svg onload=window.pwned=5>
<a href="javascript:window.pwned=6">a</a> [x](https://ok.example/"onmouseover="window.pwned=7)
\`<b>code</b>\` $\\text{<img src=x onerror=window.pwned=8>}$
\`\`\`html"><script>window.pwned=9</script>
<script>window.pwned = 10</script>
\`\`\`
| <img src=x onerror=window.pwned=11> | b |
|---|---|
| <iframe srcdoc="<script>parent.pwned=12</script>"> | [v](vbscript:x) |

Done.`;

const words = (n) => Array.from({ length: n }, (_, i) => `word${i}`).join(' ');

/** A plan: `parts` of `[field of the delta, text or pieces]`, and how they are sent. */
export function answers(question, begun) {
  const text = (content, rest = {}) => ({ parts: [['content', content]], ...rest });
  const go = begun ? ' and this is the rest.' : null;
  if (go) return text(go);
  if (/showcase/i.test(question)) return text(SHOWCASE, { delay: 2, size: 12 });
  if (/xss/i.test(question)) return text(XSS);
  if (/endless/.test(question)) return text(words(4000), { delay: 12 });
  if (/slow start/.test(question)) return text('Here at last.', { wait: 3200 });
  if (/cut off/.test(question)) return text('The beginning of an answer', { cut: true, delay: 5 });
  if (/server error/.test(question)) return text('Some words', { error: 'The device was lost.' });
  if (/too long/.test(question)) return text('One two three', { finish: 'length' });
  if (/flood/.test(question)) return text(`${words(600)}\n\n\`\`\`js\n${'const x = call(1, "two"); // three\n'.repeat(600)}\`\`\`\n\n${words(600)}`, { delay: 0, size: 8 });
  if (/reason/.test(question)) {
    return { delay: 4, parts: [['reasoning_content', 'The question is about **bread**. A dough of 70 % hydration is usual.\n\n- flour 500 g\n- water 350 g\n\nSo the answer is short.'], ['content', 'Use 350 g of water for 500 g of flour.']] };
  }
  if (/tool/.test(question)) {
    const call = (index, id, name, args) => ['tool_calls', [[{ index, id, type: 'function', function: { name, arguments: '' } }], ...args.match(/.{1,7}/g).map((piece) => [{ index, function: { arguments: piece } }])]];
    return { finish: 'tool_calls', delay: 3, parts: [['content', 'I look that up.'], call(0, 'call_a', 'get_weather', '{"city": "Lisbon", "unit": "celsius", "days": 3}'), call(1, 'call_b', 'get_time', '{"zone": "Europe/Lisbon"}')] };
  }
  if (/hello/i.test(question)) return text('Hello! How can I help you today?', { delay: 4 });
  return text(`You said: ${question.slice(0, 60).replaceAll('`', "'")}. That is all.`, { delay: 3 });
}
