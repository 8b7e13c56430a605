// The blocks of Markdown: plain data out of text, without the page. `begin` and `end` are offsets into the text.

const NESTING_MAX = 12;
const MATH_LINES_MAX = 60;
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^([ \t]*)([-*+•]|\d{1,9}[.)])(?:([ \t]+)(\S.*)?)?$/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const BLANK = /^[ \t]*$/;

/** Splits text, whose line breaks are plain, into blocks. */
export function parseBlocks(text) {
  const lines = text.split('\n');
  const offsets = [0];
  for (const line of lines) offsets.push(offsets[offsets.length - 1] + line.length + 1);
  return blocksOf(lines, 0).map((block) => ({ ...block, begin: offsets[block.from], end: Math.min(text.length, offsets[block.to]) }));
}

function blocksOf(lines, depth) {
  const out = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, to] = blockAt(lines, at, depth);
    out.push({ ...block, from: at, to });
    at = to;
  }
  return out;
}

/** The block that begins at a line, and the line behind it. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence && !(fence[2][0] === '`' && fence[3].includes('`'))) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: 'heading', level: heading[1].length, text: headingText(heading[2] ?? '') }, at + 1];
  if (RULE.test(line)) return [{ type: 'rule' }, at + 1];
  const math = mathBlock(lines, at);
  if (math) return math;
  if (depth < NESTING_MAX && QUOTE.test(line)) return quote(lines, at, depth);
  const item = ITEM.exec(line);
  if (depth < NESTING_MAX && item && item[1].length < 4) return list(lines, at, depth);
  if (beginsTable(lines, at)) return table(lines, at);
  if (/^(?: {4}|\t)/.test(line)) return indented(lines, at);
  return paragraph(lines, at);
}

// Closing hashes count only behind a space.
function headingText(raw) {
  const text = raw.trim();
  let end = text.length;
  while (text[end - 1] === '#') end -= 1;
  return end === 0 || /[ \t]/.test(text[end - 1]) ? text.slice(0, end).trim() : text;
}

function fenced(lines, at, [, indent, ticks, info]) {
  const close = new RegExp(`^ {0,3}${ticks[0] === '`' ? '`' : '~'}{${ticks.length},}[ \\t]*$`);
  const strip = new RegExp(`^ {0,${indent.length}}`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  const body = lines.slice(at + 1, end).map((line) => (indent ? line.replace(strip, '') : line));
  const closed = end < lines.length;
  return [{ type: 'code', language: /^[\w+#.-]*/.exec(info)[0].toLowerCase(), text: body.join('\n'), closed }, closed ? end + 1 : end];
}

function mathBlock(lines, at) {
  const first = lines[at].trim();
  const [open, close] = first.startsWith('$$') ? ['$$', '$$'] : first.startsWith('\\[') ? ['\\[', '\\]'] : [];
  if (!open) return null;
  for (let end = at; end < Math.min(lines.length, at + MATH_LINES_MAX) && !(end > at && BLANK.test(lines[end])); end++) {
    const line = lines[end].trimEnd();
    const found = line.lastIndexOf(close);
    const behind = end === at ? lines[at].indexOf(open) + open.length : 0;
    if (found < behind || found === -1) continue;
    if (!/^[ \t]*[.,;]?$/.test(line.slice(found + close.length))) return null;
    const source = lines.slice(at, end + 1).join('\n').trim();
    const last = source.lastIndexOf(close);
    return [{ type: 'math', text: source.slice(open.length, last) + source.slice(last + close.length), source }, end + 1];
  }
  return null;
}

function quote(lines, at, depth) {
  const inner = [];
  let end = at;
  for (; end < lines.length; end++) {
    if (QUOTE.test(lines[end])) inner.push(lines[end].replace(/^ {0,3}> ?/, ''));
    else if (BLANK.test(lines[end]) || interrupts(lines, end) || BLANK.test(inner[inner.length - 1])) break;
    else inner.push(lines[end]);
  }
  return [{ type: 'quote', children: blocksOf(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const [, , marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const kind = marker[marker.length - 1];
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[2][item[2].length - 1] !== kind || (items.length && RULE.test(lines[end]))) break;
    const [inner, next, gap] = itemLines(lines, end, item);
    const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(task[0].length);
    const children = blocksOf(inner, depth + 1);
    items.push({ checked: task ? task[1] !== ' ' : null, children });
    const another = next < lines.length && ITEM.test(lines[next]);
    loose ||= (gap && another) || children.some((child, i) => i > 0 && child.from > children[i - 1].to);
    end = next;
  }
  return [{ type: 'list', ordered, start: ordered ? parseInt(marker, 10) : 1, loose, items }, end];
}

/** The lines of one item without their indent, the line behind it, and whether a blank line ended it. */
function itemLines(lines, at, [, indent, marker, space, rest]) {
  const base = indent.length;
  const content = base + marker.length + (rest && space.length <= 4 ? space.length : 1);
  const inner = [rest ?? ''];
  let blank = 0;
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end].replaceAll('\t', '    ');
    if (BLANK.test(line)) {
      blank += 1;
      continue;
    }
    const width = line.length - line.trimStart().length;
    // Models indent by two under "1." too, so a marker that is further in than this one counts as inside.
    const inside = width >= content || (width >= base + 2 && ITEM.test(line));
    const lazy = !blank && !ITEM.test(line) && !interrupts(lines, end) && inner[inner.length - 1] !== '';
    if (!inside && !lazy) break;
    while (blank > 0) {
      inner.push('');
      blank -= 1;
    }
    inner.push(line.slice(Math.min(width, content)));
  }
  return [inner, end, blank > 0];
}

const cells = (line) => {
  const out = [''];
  let ticks = false;
  const body = line.trim().replace(/^\|/, '').replace(/(^|[^\\])\|$/, '$1');
  for (let i = 0; i < body.length; i++) {
    if (body[i] === '\\' && body[i + 1] === '|') {
      out[out.length - 1] += '|';
      i += 1;
    } else if (body[i] === '|' && !ticks) out.push('');
    else {
      if (body[i] === '`') ticks = !ticks && body.indexOf('`', i + 1) > 0;
      out[out.length - 1] += body[i];
    }
  }
  return out.map((cell) => cell.trim());
};

function beginsTable(lines, at) {
  const next = lines[at + 1];
  return next !== undefined && lines[at].includes('|') && next.includes('-') && DELIMITER.test(next) && cells(lines[at]).length === cells(next).length;
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'right') : ''));
  let end = at + 2;
  while (end < lines.length && !BLANK.test(lines[end]) && (lines[end].includes('|') || !interrupts(lines, end)) && lines[end].includes('|')) end += 1;
  return [{ type: 'table', align, head: cells(lines[at]), rows: lines.slice(at + 2, end).map(cells) }, end];
}

function indented(lines, at) {
  let end = at;
  while (end < lines.length && (BLANK.test(lines[end]) || /^(?: {4}|\t)/.test(lines[end]))) end += 1;
  while (BLANK.test(lines[end - 1])) end -= 1;
  return [{ type: 'code', language: '', text: lines.slice(at, end).map((line) => line.replace(/^(?: {4}|\t)/, '')).join('\n'), closed: true }, end];
}

function paragraph(lines, at) {
  let end = at + 1;
  for (; end < lines.length && !BLANK.test(lines[end]); end++) {
    const under = UNDERLINE.exec(lines[end]);
    if (under) {
      const text = lines.slice(at, end).map((line) => line.trim()).join('\n');
      return [{ type: 'heading', level: under[1][0] === '=' ? 1 : 2, text }, end + 1];
    }
    if (interrupts(lines, end)) break;
  }
  return [{ type: 'paragraph', text: lines.slice(at, end).map((line) => line.trimStart()).join('\n').trimEnd() }, end];
}

/** Whether a line ends the paragraph before it. */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const fence = FENCE.exec(line);
  return Boolean(HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || (fence && !(fence[2][0] === '`' && fence[3].includes('`')))
    || (item && item[4] && item[1].length < 4) || beginsTable(lines, at) || mathBlock(lines, at));
}
