// A subset of TeX's mathematics as MathML. What is not understood is shown as its source, never half right.

import { h } from './dom.js';
import { SYMBOLS, OPERATORS, LARGE, FUNCTIONS, ACCENTS, styled } from './symbols.js';

const MATHML = 'http://www.w3.org/1998/Math/MathML';
const DEPTH_MAX = 40;
const LENGTH_MAX = 4000;
const FENCES = { '.': '', '\\{': '{', '\\}': '}', '\\|': '‖', '\\langle': '⟨', '\\rangle': '⟩', '\\lfloor': '⌊', '\\rfloor': '⌋', '\\lceil': '⌈', '\\rceil': '⌉', '\\lvert': '|', '\\rvert': '|', '\\lVert': '‖', '\\rVert': '‖', '\\vert': '|', '\\Vert': '‖', '\\lbrace': '{', '\\rbrace': '}', '\\lbrack': '[', '\\rbrack': ']', '\\backslash': '\\' };
const MATRICES = { matrix: ['', ''], smallmatrix: ['', ''], pmatrix: ['(', ')'], bmatrix: ['[', ']'], Bmatrix: ['{', '}'], vmatrix: ['|', '|'], Vmatrix: ['‖', '‖'], cases: ['{', ''], rcases: ['', '}'], array: ['', ''], aligned: ['', ''], align: ['', ''], 'align*': ['', ''], gathered: ['', ''], gather: ['', ''], 'gather*': ['', ''], split: ['', ''], equation: ['', ''], 'equation*': ['', ''], eqnarray: ['', ''], 'eqnarray*': ['', ''], alignat: ['', ''], 'alignat*': ['', ''], alignedat: ['', ''], substack: ['', ''] };
const SPACES = { ',': '0.167em', ':': '0.222em', '>': '0.222em', ';': '0.278em', ' ': '0.25em', '!': '-0.167em', quad: '1em', qquad: '2em', enspace: '0.5em', thinspace: '0.167em', medspace: '0.222em', thickspace: '0.278em' };
const STYLES = { mathbb: 'double', Bbb: 'double', mathcal: 'script', mathscr: 'script', mathfrak: 'fraktur', mathbf: 'bold', bm: 'bold', boldsymbol: 'bold', pmb: 'bold', mathsf: 'sans', mathtt: 'mono' };
const SIZES = { big: '1.2em', Big: '1.623em', bigg: '2.047em', Bigg: '2.470em' };
// Said about layout alone; leaving them out changes no meaning.
const LAYOUT = new Set(['displaystyle', 'textstyle', 'scriptstyle', 'limits', 'nolimits', 'nonumber', 'notag', 'allowbreak', 'hline', 'normalsize', 'small', 'large']);

class Unknown extends Error {}

/** Appends the mathematics of `tex`; `source` is what was written, shown where it cannot be read. */
export function appendMath(parent, tex, display, source) {
  try {
    parent.append(toMathML(tex, display));
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    parent.append(h('code', { class: 'math-source', title: `Shown as written: ${error.message}`, text: source }));
  }
}

/** A `<math>` element, with the TeX as its label for copying. */
export function toMathML(tex, display) {
  if (tex.length > LENGTH_MAX) throw new Unknown('too long');
  const parser = new Parser(tokens(tex), display);
  const body = parser.rows(null);
  const math = m('math', display ? { display: 'block' } : {}, m('semantics', {}, body, m('annotation', { encoding: 'application/x-tex' }, tex.trim())));
  return math;
}

function m(tag, attributes, ...children) {
  const element = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const mo = (text, attributes = {}) => m('mo', attributes, text);
const fence = (text, size) => mo(text, size ? { minsize: size, maxsize: size, stretchy: 'true' } : { fence: 'true', stretchy: 'true', form: 'prefix' });

function tokens(tex) {
  const out = tex.match(/\\(?:[a-zA-Z]+\*?|[\s\S])|%[^\n]*|\s+|\d+(?:[.,]\d+)*|[\s\S]/gu) ?? [];
  return out.filter((token) => !token.startsWith('%'));
}

class Parser {
  constructor(list, display) {
    this.list = list;
    this.at = 0;
    this.depth = 0;
    this.display = display;
  }

  peek() {
    while (/^\s/.test(this.list[this.at] ?? '')) this.at += 1;
    return this.list[this.at];
  }

  next() {
    const token = this.peek();
    if (token === undefined) throw new Unknown('it ends too early');
    this.at += 1;
    return token;
  }

  take(token) {
    if (this.peek() !== token) return false;
    this.at += 1;
    return true;
  }

  expect(token) {
    if (!this.take(token)) throw new Unknown(`${token} is missing`);
  }

  /** The characters of a group, spaces included. */
  raw() {
    this.expect('{');
    let open = 1;
    let text = '';
    for (; this.at < this.list.length; this.at++) {
      const token = this.list[this.at];
      if (token === '{') open += 1;
      if (token === '}' && --open === 0) {
        this.at += 1;
        return text;
      }
      text += token;
    }
    throw new Unknown('} is missing');
  }

  /** Atoms up to a token of `stops`, as one row. */
  row(...stops) {
    if (++this.depth > DEPTH_MAX) throw new Unknown('nested too deep');
    const out = [];
    for (let token = this.peek(); !stops.includes(token); token = this.peek()) {
      if (token === undefined) throw new Unknown(`${stops[0] ?? 'something'} is missing`);
      if (token === '}' || token === '&' || token === '\\\\' || token === '\\end' || token === '\\right') throw new Unknown(`${token} is out of place`);
      const atom = this.scripted();
      if (atom) out.push(atom);
    }
    this.depth -= 1;
    return out.length === 1 ? out[0] : m('mrow', {}, ...out);
  }

  /** Rows and cells up to `\end{name}`, or to the end of all. */
  rows(name, align = null) {
    const stops = ['&', '\\\\', '\\cr', name === null ? undefined : '\\end'];
    const table = [[]];
    for (;;) {
      table[table.length - 1].push(this.row(...stops));
      const token = this.peek();
      if (token === undefined || token === '\\end') break;
      this.at += 1;
      if (token === '&') continue;
      if (this.peek() === '[' && name !== null) while (this.next() !== ']');
      table.push([]);
    }
    if (name !== null) {
      this.expect('\\end');
      if (this.raw() !== name) throw new Unknown(`\\end{${name}} is missing`);
    }
    const last = table[table.length - 1];
    if (table.length > 1 && last.length === 1 && last[0].localName === 'mrow' && !last[0].firstChild) table.pop();
    if (name === null && table.length === 1 && table[0].length === 1) return table[0][0];
    const kind = align ?? (name === 'cases' ? 'left' : name === null || /align|split|eqn/.test(name) ? 'equations' : 'center');
    return m('mtable', { class: `rows-${kind}` }, ...table.map((cells) => m('mtr', {}, ...cells.map((cell) => m('mtd', {}, cell)))));
  }

  /** An atom with its sub- and superscripts. */
  scripted() {
    let base = this.atom();
    let under = null;
    let over = null;
    let primes = '';
    const limits = base?.dataset?.limits;
    for (;;) {
      if (this.take('\\limits') || this.take('\\nolimits')) continue;
      if (this.take("'")) primes += '′';
      else if (!under && this.take('_')) under = this.argument();
      else if (!over && this.take('^')) over = this.argument();
      else break;
    }
    if (primes) over = over ? m('mrow', {}, mo(primes), over) : mo(primes);
    if (!under && !over) return base;
    base ??= m('mrow', {});
    const outside = limits === 'always' || (limits === 'display' && this.display);
    if (under && over) return m(outside ? 'munderover' : 'msubsup', {}, base, under, over);
    if (under) return m(outside ? 'munder' : 'msub', {}, base, under);
    return m(outside ? 'mover' : 'msup', {}, base, over);
  }

  /** What a command or a script takes: a group or one atom. */
  argument() {
    if (this.take('{')) {
      const row = this.row('}');
      this.expect('}');
      return row;
    }
    // In `x^23` the script is the 2 alone.
    const token = this.peek();
    if (/^\d\d/.test(token ?? '')) {
      this.list[this.at] = token.slice(1);
      return m('mn', {}, token[0]);
    }
    if (++this.depth > DEPTH_MAX) throw new Unknown('nested too deep');
    const atom = this.atom();
    this.depth -= 1;
    if (!atom) throw new Unknown('something is missing');
    return atom;
  }

  atom() {
    const token = this.peek();
    if (token === '^' || token === '_' || token === "'") return null;
    this.at += 1;
    if (token === '{') {
      const row = this.row('}');
      this.expect('}');
      return row.localName === 'mrow' ? row : m('mrow', {}, row);
    }
    if (token.startsWith('\\')) return this.command(token.slice(1));
    if (/^\d/.test(token)) return m('mn', {}, token);
    if (/^\p{L}/u.test(token)) return m('mi', {}, token);
    if (token === '~') return m('mspace', { width: '0.25em' });
    if (token === '-') return mo('−');
    if (token === '*') return mo('∗');
    if ('()[]|'.includes(token)) return mo(token, { stretchy: 'false' });
    if (token === '#' || token === '$') throw new Unknown(`${token} is out of place`);
    return mo(token);
  }

  command(name) {
    if (Object.hasOwn(SPACES, name)) return m('mspace', { width: SPACES[name] });
    if (Object.hasOwn(SYMBOLS, name)) return m('mi', /^[A-Z]/.test(name) ? { mathvariant: 'normal' } : {}, SYMBOLS[name]);
    if (Object.hasOwn(OPERATORS, name)) return mo(OPERATORS[name], name === 'mid' || name === 'vert' ? { stretchy: 'false' } : {});
    if (Object.hasOwn(LARGE, name)) {
      const operator = mo(LARGE[name], { largeop: 'true', movablelimits: 'false' });
      if (!name.includes('int')) operator.dataset.limits = 'display';
      return operator;
    }
    if (FUNCTIONS.has(name)) return this.functionName(name.replace(/^(lim|arg)(sup|inf|max|min)$/, '$1 $2'), /^(lim|max|min|sup|inf|arg|det|gcd|Pr)/.test(name));
    if (Object.hasOwn(ACCENTS, name)) {
      const [mark, under, stretchy] = ACCENTS[name];
      const out = m(under ? 'munder' : 'mover', { [under ? 'accentunder' : 'accent']: 'true' }, this.argument(), mo(mark, { stretchy: String(stretchy) }));
      if (name.endsWith('brace')) out.dataset.limits = 'always';
      return out;
    }
    if (Object.hasOwn(STYLES, name)) return this.restyle(STYLES[name]);
    if (Object.hasOwn(FENCES, `\\${name}`)) return mo(FENCES[`\\${name}`], { stretchy: 'false' });
    if (LAYOUT.has(name)) return null;
    const size = /^(big|Big|bigg|Bigg)[lrm]?$/.exec(name);
    if (size) return fence(this.delimiter(), SIZES[size[1]]);
    return this.structure(name);
  }

  structure(name) {
    switch (name) {
      case 'frac': case 'tfrac': return this.fraction(false);
      case 'dfrac': case 'cfrac': return this.fraction(this.display);
      case 'binom': case 'dbinom': case 'tbinom': return m('mrow', {}, fence('('), m('mfrac', { linethickness: '0' }, this.argument(), this.argument()), fence(')'));
      case 'sqrt': return this.root();
      case 'left': return this.fenced();
      case 'middle': return fence(this.delimiter());
      case 'begin': return this.environment();
      case 'text': case 'textrm': case 'textnormal': case 'mbox': case 'textbf': case 'textit': case 'texttt': case 'label': return this.plainText(name);
      case 'tag': return m('mtext', { class: 'tag' }, `\u2003(${this.raw()})`);
      case 'mathrm': case 'rm': case 'mathit': case 'mathnormal': return name === 'rm' ? null : this.restyle(name === 'mathrm' ? 'upright' : 'plain');
      case 'operatorname': case 'operatorname*': return this.functionName(this.raw().replace(/\\[,;: ]/g, ' '), name.endsWith('*'));
      case 'overset': case 'stackrel': {
        const over = this.argument();
        return m('mover', {}, this.argument(), over);
      }
      case 'underset': {
        const under = this.argument();
        return m('munder', {}, this.argument(), under);
      }
      case 'not': return mo(`${this.argument().textContent}\u0338`);
      case 'boxed': case 'fbox': return m('mrow', { class: 'boxed' }, this.argument());
      case 'phantom': return m('mphantom', {}, this.argument());
      case 'pmod': return m('mrow', {}, m('mspace', { width: '0.5em' }), mo('(', { stretchy: 'false' }), m('mi', {}, 'mod'), m('mspace', { width: '0.25em' }), this.argument(), mo(')', { stretchy: 'false' }));
      case 'bmod': return mo('mod', { lspace: '0.25em', rspace: '0.25em' });
      case '{': case '}': case '%': case '$': case '#': case '&': case '_': return mo(name, { stretchy: 'false' });
      default: throw new Unknown(`\\${name} is not known here`);
    }
  }

  /** The parts of a fraction are in text style: limits stand beside, not below. */
  fraction(display) {
    const before = this.display;
    this.display = display;
    const out = m('mfrac', {}, this.argument(), this.argument());
    this.display = before;
    return out;
  }

  functionName(name, limits) {
    const out = m('mrow', {}, m('mi', { mathvariant: 'normal' }, name));
    if (limits) out.dataset.limits = 'display';
    else if (/^[\p{L}\d\\{]/u.test(this.peek() ?? '')) out.append(m('mspace', { width: '0.167em' }));
    return out;
  }

  plainText(name) {
    const text = this.raw();
    if (name === 'label') return null;
    // Mathematics inside text is rare; its dollars are left out.
    return m('mtext', { class: `text-${name}` }, text.replace(/^ | $/g, '\u00a0').replaceAll('$', ''));
  }

  restyle(kind) {
    const out = this.argument();
    const leaves = out.children.length ? [...out.querySelectorAll('*')].filter((part) => !part.children.length) : [out];
    for (const leaf of leaves) {
      if (leaf.localName !== 'mi' && leaf.localName !== 'mn') continue;
      leaf.textContent = styled(leaf.textContent, kind);
      if (kind !== 'plain') leaf.setAttribute('mathvariant', 'normal');
    }
    return out;
  }

  root() {
    if (!this.take('[')) return m('msqrt', {}, this.argument());
    const degree = this.row(']');
    this.expect(']');
    return m('mroot', {}, this.argument(), degree);
  }

  delimiter() {
    const token = this.next();
    if (Object.hasOwn(FENCES, token)) return FENCES[token];
    if ('()[]|/<>'.includes(token)) return { '<': '⟨', '>': '⟩' }[token] ?? token;
    throw new Unknown(`${token} is no delimiter`);
  }

  fenced() {
    const open = this.delimiter();
    const body = this.row('\\right');
    this.expect('\\right');
    const close = this.delimiter();
    return m('mrow', {}, ...(open ? [fence(open)] : []), body, ...(close ? [mo(close, { fence: 'true', stretchy: 'true', form: 'postfix' })] : []));
  }

  environment() {
    const name = this.raw();
    if (!Object.hasOwn(MATRICES, name)) throw new Unknown(`{${name}} is not known here`);
    if (/^alignat|alignedat|^array$/.test(name)) this.raw();
    const [open, close] = MATRICES[name];
    const table = this.rows(name);
    if (!open && !close) return table;
    return m('mrow', {}, ...(open ? [fence(open)] : []), table, ...(close ? [mo(close, { fence: 'true', stretchy: 'true', form: 'postfix' })] : []));
  }
}
