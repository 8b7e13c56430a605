// Colours for code: one loop over sticky patterns for each family of languages. It knows words, not grammars.

const words = (text) => new Set(text.split(' '));

const C = 'if else for while do switch case default break continue return goto sizeof typedef struct union enum static const extern inline void int long short char float double unsigned signed bool true false';
const KEYWORDS = {
  c: words(`${C} NULL volatile restrict register auto`),
  cpp: words(`${C} class public private protected virtual override final template typename namespace using new delete this nullptr try catch throw auto constexpr consteval noexcept operator friend mutable explicit concept requires co_await co_return co_yield`),
  js: words('abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum export extends false finally for from function get if implements import in infer instanceof interface keyof let namespace never new null number of private protected public readonly return satisfies set static string super switch this throw true try type typeof undefined unknown var void while with yield'),
  rust: words('as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while union'),
  go: words('break case chan const continue default defer else fallthrough for func go goto if import interface map package range return select struct switch type var nil true false string int int64 float64 bool byte error rune any'),
  java: words(`${C} class interface extends implements public private protected abstract final native new this super import package throws throw try catch finally synchronized instanceof null var record sealed permits boolean byte string namespace using async await override internal get set foreach in is out ref object decimal yield`),
  kotlin: words('as break by class companion const continue crossinline data do else enum false final finally for fun if import in init inline interface internal is it lateinit null object open operator out override package private protected public return sealed super suspend this throw true try typealias val var vararg when where while func let guard struct protocol extension nil self Self mutating case switch default static throws async await'),
  python: words('and as assert async await break class continue def del elif else except False finally for from global if import in is lambda match case None nonlocal not or pass raise return self True try while with yield'),
  ruby: words('alias and begin break case class def defined do else elsif end ensure false for if in module next nil not or redo require rescue retry return self super then true undef unless until when while yield attr_accessor attr_reader puts'),
  php: words('abstract and array as break case catch class const continue declare default do echo else elseif extends false final finally fn for foreach function global if implements include instanceof interface match namespace new null or private protected public readonly require return static switch this throw trait true try use var while yield'),
  shell: words('if then else elif fi for while until do done case esac in function return exit export local readonly set unset source alias echo cd sudo true false'),
  sql: words('select from where and or not in is null as on join left right inner outer full cross group by order having limit offset insert into values update set delete create table index view drop alter add column primary key foreign references unique default check constraint union all distinct case when then else end exists between like with recursive returning begin commit rollback integer int text varchar boolean date timestamp asc desc count sum avg min max true false'),
  lua: words('and break do else elseif end false for function goto if in local nil not or repeat return then true until while'),
  data: words('true false null yes no on off True False None'),
};

const NUMBER = /(?:0[xX][\da-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)[\w%]*/y;
const DOUBLE = /"(?:[^"\\\n]|\\[\s\S])*"?/y;
const SINGLE = /'(?:[^'\\\n]|\\[\s\S])*'?/y;
const WORD = /[\p{L}_$@][\p{L}\p{N}_$]*/uy;
const SLASHES = ['comment', /\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$(?![\s\S]))/y];
const HASH = ['comment', /#[^\n]*/y];
const DASHES = ['comment', /--[^\n]*/y];
const quoted = [['string', DOUBLE], ['string', SINGLE]];

const JS = { rules: [SLASHES, ...quoted, ['string', /`(?:[^`\\]+|\\[\s\S])*`?/y]], keywords: KEYWORDS.js };
const cLike = (keywords) => ({ rules: [SLASHES, ['meta', /^[ \t]*#\w+[^\n]*/my], ...quoted], keywords });
const SHELL = { rules: [['comment', /(?<=^|\s)#[^\n]*/my], ['string', /"(?:[^"\\]+|\\[\s\S])*"?/y], ['string', /'[^']*'?/y], ['name', /\$(?:\w+|\{[^}\n]*\}?|[@#?$!*-])/y], ['key', /(?<=\s)--?[A-Za-z][\w-]*/y]], keywords: KEYWORDS.shell };
const CONFIG = { rules: [['comment', /(?<=^|\s)#[^\n]*/my], ['meta', /^[ \t]*\[\[?[^\]\n]*\]\]?/my], ['key', /^[ \t]*(?:- )?[\w."'-]+(?=[ \t]*[:=])/my], ...quoted], keywords: KEYWORDS.data };
const MARKUP = { rules: [['comment', /<!--[\s\S]*?(?:-->|$(?![\s\S]))/y], ['keyword', /<[/!?]?[A-Za-z][\w:-]*|[/?]?>/y], ['key', /[\w:@-]+(?==)/y], ['string', /(?<==)(?:"[^"]*"?|'[^']*'?)/y]], keywords: new Set() };
const CSS = { rules: [SLASHES, ...quoted, ['keyword', /@[\w-]+/y], ['key', /[\w-]+(?=[ \t]*:[^:])/y], ['number', /#[\da-fA-F]{3,8}\b/y]], keywords: new Set() };
const DIFF = { rules: [['meta', /^(?:@@|diff |index |\+\+\+|---)[^\n]*/my], ['added', /^\+[^\n]*/my], ['removed', /^-[^\n]*/my], ['text', /[^\n]+/y]], keywords: new Set() };
const JSONS = { rules: [SLASHES, ['key', /"(?:[^"\\\n]|\\.)*"(?=[ \t]*:)/y], ['string', DOUBLE]], keywords: KEYWORDS.data };
const RUST = { rules: [SLASHES, ['meta', /#!?\[[^\]\n]*\]/y], ['string', /b?r(#*)"[\s\S]*?(?:"\1|$(?![\s\S]))/y], ['string', /b?"(?:[^"\\]+|\\[\s\S])*"?/y], ['string', /b?'(?:[^'\\\n]|\\[^\n]{1,10}?)'/y], ['meta', /'[a-z_]\w*/y], ['name', /[a-z_]\w*!/y]], keywords: KEYWORDS.rust };
const PYTHON = { rules: [HASH, ['string', /[rbfuRBFU]{0,2}(?:"""[\s\S]*?(?:"""|$(?![\s\S]))|'''[\s\S]*?(?:'''|$(?![\s\S])))/y], ['string', /[rbfuRBFU]{0,2}(?:"(?:[^"\\\n]|\\[\s\S])*"?|'(?:[^'\\\n]|\\[\s\S])*'?)/y], ['meta', /^[ \t]*@[\w.]+/my]], keywords: KEYWORDS.python };

const LANGUAGES = {
  javascript: JS, js: JS, mjs: JS, jsx: JS, typescript: JS, ts: JS, tsx: JS,
  rust: RUST, rs: RUST, python: PYTHON, py: PYTHON, python3: PYTHON,
  c: cLike(KEYWORDS.c), h: cLike(KEYWORDS.c), cpp: cLike(KEYWORDS.cpp), 'c++': cLike(KEYWORDS.cpp), cc: cLike(KEYWORDS.cpp), cuda: cLike(KEYWORDS.cpp), glsl: cLike(KEYWORDS.c), wgsl: cLike(KEYWORDS.rust), zig: cLike(KEYWORDS.rust),
  java: cLike(KEYWORDS.java), csharp: cLike(KEYWORDS.java), cs: cLike(KEYWORDS.java), 'c#': cLike(KEYWORDS.java), dart: cLike(KEYWORDS.java), scala: cLike(KEYWORDS.kotlin),
  go: { rules: [SLASHES, ...quoted, ['string', /`[^`]*`?/y]], keywords: KEYWORDS.go }, golang: { rules: [SLASHES, ...quoted], keywords: KEYWORDS.go },
  kotlin: cLike(KEYWORDS.kotlin), kt: cLike(KEYWORDS.kotlin), swift: cLike(KEYWORDS.kotlin),
  php: { rules: [SLASHES, HASH, ...quoted], keywords: KEYWORDS.php },
  ruby: { rules: [HASH, ...quoted, ['name', /(?<!:):[a-z_]\w*/y]], keywords: KEYWORDS.ruby }, rb: { rules: [HASH, ...quoted], keywords: KEYWORDS.ruby },
  julia: { rules: [HASH, ['string', DOUBLE]], keywords: KEYWORDS.ruby }, elixir: { rules: [HASH, ['string', DOUBLE]], keywords: KEYWORDS.ruby }, r: { rules: [HASH, ...quoted], keywords: KEYWORDS.js }, perl: { rules: [HASH, ...quoted], keywords: KEYWORDS.php },
  bash: SHELL, sh: SHELL, shell: SHELL, zsh: SHELL, console: SHELL, fish: SHELL, powershell: SHELL, dockerfile: SHELL, makefile: SHELL,
  json: JSONS, jsonc: JSONS, json5: JSONS, jsonl: JSONS, yaml: CONFIG, yml: CONFIG, toml: CONFIG, ini: CONFIG, conf: CONFIG, properties: CONFIG,
  html: MARKUP, xml: MARKUP, svg: MARKUP, vue: MARKUP, css: CSS, scss: CSS, less: CSS, diff: DIFF, patch: DIFF,
  sql: { rules: [DASHES, SLASHES, ...quoted], keywords: KEYWORDS.sql, fold: true }, lua: { rules: [DASHES, ...quoted], keywords: KEYWORDS.lua }, haskell: { rules: [DASHES, ['string', DOUBLE]], keywords: KEYWORDS.ruby },
};

/** Splits code into `[class, text]`; `class` is empty for plain text. Every character of the code is in exactly one token. */
export function tokenize(code, name) {
  const language = LANGUAGES[String(name).toLowerCase()];
  if (!language) return [['', code]];
  const out = [];
  let plain = 0;
  let at = 0;
  const push = (kind, end) => {
    if (plain < at) out.push(['', code.slice(plain, at)]);
    out.push([kind, code.slice(at, end)]);
    at = plain = end;
  };
  const match = (pattern) => {
    pattern.lastIndex = at;
    return pattern.test(code) && pattern.lastIndex > at ? pattern.lastIndex : 0;
  };
  scan: while (at < code.length) {
    for (const [kind, pattern] of language.rules) {
      const end = match(pattern);
      if (end) {
        push(kind, end);
        continue scan;
      }
    }
    let end = match(WORD);
    if (end) {
      const word = code.slice(at, end);
      if (language.keywords.has(language.fold ? word.toLowerCase() : word)) push('keyword', end);
      else if (code[end] === '(') push('name', end);
      else if (/^[A-Z][A-Za-z]*[a-z]/.test(word) && language.keywords.size) push('type', end);
      else at = end;
      continue;
    }
    end = match(NUMBER);
    if (end) push('number', end);
    else at += 1;
  }
  if (plain < at) out.push(['', code.slice(plain, at)]);
  return out;
}

/** Shows code that grows: what lies before the last line that a token ends on stays as it is. */
export class CodeView {
  constructor(element, language) {
    this.element = element;
    this.language = language;
    this.done = 0;
    this.kept = 0;
    this.code = '';
  }

  set(code) {
    if (!code.startsWith(this.code)) {
      this.done = this.kept = 0;
      this.element.replaceChildren();
    }
    this.code = code;
    while (this.element.childNodes.length > this.kept) this.element.lastChild.remove();
    const tokens = tokenize(code.slice(this.done), this.language);
    // The last line may still become something else, and a string may go on over lines, so only tokens before a line break outside
    // of all tokens are kept.
    const safe = code.lastIndexOf('\n', code.length - 1);
    let offset = this.done;
    const fresh = document.createDocumentFragment();
    for (const [kind, text] of tokens) {
      const open = !kind && offset + text.length > safe && offset < safe;
      const parts = open ? [text.slice(0, safe + 1 - offset), text.slice(safe + 1 - offset)] : [text];
      for (const part of parts) {
        if (!part) continue;
        const node = document.createTextNode(part);
        if (kind) {
          const span = document.createElement('span');
          span.className = `t-${kind}`;
          span.append(node);
          fresh.append(span);
        } else fresh.append(node);
        offset += part.length;
        if (!kind && offset === safe + 1) {
          this.done = offset;
          this.kept += fresh.childNodes.length;
          this.element.append(fresh);
        }
      }
    }
    this.element.append(fresh);
  }
}
