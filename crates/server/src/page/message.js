// One message of the conversation as elements: what a person wrote, what the model answered, what a tool gave.

import { h, icon, iconButton, copyButton, bytes, count } from './dom.js';
import { MarkdownView } from './markdown.js';
import { CodeView } from './highlight.js';
import { fullText } from './tree.js';

const LONG_TEXT = 1500;

/** `‹ 2/3 ›`, where a message has other versions. */
function versionArrows(node, all, actions) {
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  const go = (step) => actions.version(all[at + step]);
  return h('span', { class: 'versions', role: 'group', 'aria-label': 'Versions' },
    iconButton('left', 'Previous version', () => go(-1), { disabled: at === 0 }),
    h('span', { class: 'version-count', text: `${at + 1}/${all.length}`, 'aria-label': `Version ${at + 1} of ${all.length}` }),
    iconButton('right', 'Next version', () => go(1), { disabled: at === all.length - 1 }));
}

export class UserView {
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.body = h('div', { class: 'bubble' });
    this.foot = h('footer', { class: 'message-foot' });
    this.element = h('article', { class: 'message user', 'aria-label': 'You', data: { id: node.id } }, this.body, this.foot);
    this.showText();
  }

  showText() {
    const { node } = this;
    this.body.replaceChildren();
    if (node.content) {
      const text = h('div', { class: 'typed', text: node.content });
      this.body.append(text);
      if (node.content.length > LONG_TEXT || node.content.split('\n').length > 24) this.fold(text);
    }
    for (const file of node.files ?? []) {
      this.body.append(h('details', { class: 'file' }, h('summary', {}, icon('file'), h('span', { class: 'file-name', text: file.name }), h('span', { class: 'faint', text: bytes(new Blob([file.text]).size) })), h('pre', { tabindex: '0', text: file.text })));
    }
    this.versions = null;
  }

  fold(text) {
    text.classList.add('folded');
    const button = h('button', { type: 'button', class: 'link-button', text: 'Show all', 'aria-expanded': 'false' });
    button.addEventListener('click', () => {
      const folded = text.classList.toggle('folded');
      button.textContent = folded ? 'Show all' : 'Show less';
      button.setAttribute('aria-expanded', String(!folded));
    });
    this.body.append(button);
  }

  update({ versions, busy }) {
    const { node, actions } = this;
    this.foot.replaceChildren(...[
      versionArrows(node, versions, actions),
      h('span', { class: 'actions' },
        copyButton('Copy message', () => node.content || fullText(node)),
        iconButton('pencil', 'Edit message', () => this.edit(), { disabled: busy }),
        iconButton('fork', 'Continue from here in a new chat', () => actions.fork(node))),
    ].filter(Boolean));
  }

  /** Turns the bubble into a field; sending makes another version of the message. */
  edit() {
    if (this.element.classList.contains('editing')) return;
    const { node, actions } = this;
    const area = h('textarea', { 'aria-label': 'Edit your message', value: node.content, rows: '1', enterkeyhint: 'send' });
    const size = () => {
      area.style.height = 'auto';
      area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.5)}px`;
    };
    const close = () => {
      this.element.classList.remove('editing');
      this.showText();
      this.foot.hidden = false;
    };
    const send = () => {
      if (!area.value.trim() && !node.files?.length) return;
      close();
      actions.edit(node, area.value);
    };
    const cancel = () => {
      close();
      actions.focusPrompt();
    };
    area.addEventListener('input', size);
    area.addEventListener('keydown', (event) => {
      if (event.isComposing) return;
      if (event.key === 'Enter' && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === 'Escape') {
        event.preventDefault();
        event.stopPropagation();
        cancel();
      }
    });
    const files = node.files?.length ? h('p', { class: 'faint', text: `${node.files.map((file) => file.name).join(', ')} ${node.files.length > 1 ? 'stay' : 'stays'} attached.` }) : null;
    this.element.classList.add('editing');
    this.foot.hidden = true;
    this.body.replaceChildren(...[area, files, h('div', { class: 'edit-buttons' }, h('button', { type: 'button', class: 'button', text: 'Cancel', on: { click: cancel } }), h('button', { type: 'button', class: 'button primary', text: 'Send', on: { click: send } }))].filter(Boolean));
    size();
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** The result of a tool, which a person gave. */
export class ToolView {
  constructor(node) {
    this.node = node;
    this.element = h('article', { class: 'message tool', 'aria-label': 'Result of a tool', data: { id: node.id } },
      h('details', { class: 'call' }, h('summary', {}, icon('tool'), h('span', { text: `Result of ${node.name || 'the tool'}` })), h('pre', { tabindex: '0', text: node.content })));
  }

  update() {}
}

export class AnswerView {
  /** `ontext` is called with each block of text that is final, while it is written. */
  constructor(node, actions, ontext) {
    this.node = node;
    this.actions = actions;
    this.prose = h('div', { class: 'prose' });
    this.thoughts = h('div', { class: 'prose thoughts' });
    this.thoughtTitle = h('span');
    this.reasoning = h('details', { class: 'reasoning', hidden: true }, h('summary', {}, icon('right'), this.thoughtTitle), this.thoughts);
    this.calls = h('div', { class: 'calls' });
    this.note = h('div', { class: 'note-place' });
    this.foot = h('footer', { class: 'message-foot' });
    this.element = h('article', { class: 'message answer', 'aria-label': 'Answer', data: { id: node.id } }, this.reasoning, this.prose, this.calls, this.note, this.foot);
    this.text = new MarkdownView(this.prose, (block) => this.live && ontext(block.innerText));
    this.ontext = ontext;
    this.thinking = new MarkdownView(this.thoughts);
    this.callViews = [];
    this.lazy = false;
    this.live = false;
    // Folded thoughts are made into elements when somebody looks.
    this.reasoning.addEventListener('toggle', () => this.showThoughts());
  }

  /** Shows plain text until the message comes into sight. */
  postpone() {
    this.lazy = true;
    this.prose.classList.add('raw');
    this.prose.textContent = this.node.content;
  }

  update({ run, versions, last, busy }) {
    const ended = this.live && !run;
    this.grow(run);
    // The last blocks are final only now.
    if (ended) for (const { element } of this.text.open) this.ontext(element.innerText);
    this.live = Boolean(run);
    this.showNote(run, last, busy);
    this.showFoot(run, versions, busy);
  }

  /** What changes with every token. */
  grow(run) {
    const { node } = this;
    if (!this.lazy) {
      this.prose.classList.remove('raw');
      this.text.update(node.content);
    }
    this.showThoughts(run);
    this.showCalls();
    this.element.classList.toggle('running', Boolean(run));
    this.element.setAttribute('aria-busy', String(Boolean(run)));
    if (run) this.showPhase(run);
  }

  showThoughts(run) {
    const { node } = this;
    this.reasoning.hidden = !node.reasoning;
    if (!node.reasoning) return;
    const now = run?.phase.kind === 'thinking';
    this.reasoning.classList.toggle('now', now);
    const seconds = node.thought === undefined ? null : node.thought < 9.5 ? node.thought.toFixed(1) : Math.round(node.thought);
    const title = now ? 'Thinking…' : seconds === null ? 'Thoughts' : `Thought for ${seconds} s`;
    if (this.thoughtTitle.textContent !== title) this.thoughtTitle.textContent = title;
    if (this.reasoning.open) this.thinking.update(node.reasoning);
  }

  showCalls() {
    (this.node.calls ?? []).forEach((call, i) => {
      const view = this.callViews[i] ?? this.addCall();
      view.name.textContent = call.name || '…';
      let text = call.arguments;
      try {
        text = JSON.stringify(JSON.parse(call.arguments), null, 2);
      } catch {
        // Still being written, or no JSON: shown as it is.
      }
      if (view.shown !== text) view.code.set(view.shown = text);
      view.pre.hidden = !text || text === '{}';
    });
  }

  addCall() {
    const code = h('code');
    const name = h('code');
    const pre = h('pre', { tabindex: '0' }, code);
    this.calls.append(h('div', { class: 'call' }, h('div', { class: 'call-head' }, icon('tool'), h('span', {}, 'Calls ', name)), pre));
    const view = { name, pre, code: new CodeView(code, 'json'), shown: null };
    this.callViews.push(view);
    return view;
  }

  showPhase({ phase, node }) {
    const writing = phase.kind === 'writing' || phase.kind === 'thinking' || phase.kind === 'calling';
    if (writing) {
      if (this.noted) this.setNote(null);
      return;
    }
    if (phase.kind === 'sent') {
      if (this.noted !== 'sent') this.setNote('sent', h('div', { class: 'waiting' }, h('span', { class: 'dots', 'aria-hidden': 'true' }, h('i'), h('i'), h('i')), h('span', { class: 'faint', text: '' })));
      const seconds = Math.floor((performance.now() - phase.since) / 1000);
      this.note.querySelector('.faint').textContent = seconds >= 2 ? `${node.content ? 'Going on' : 'Reading the prompt'}… ${seconds} s` : '';
    } else if (phase.kind === 'busy') {
      this.setNote('busy', card('wait', 'The server is busy', `${phase.detail ? `${phase.detail} ` : ''}Trying again in ${phase.seconds} s.`, [['Try now', () => this.actions.hurry()], ['Stop', () => this.actions.stop()]]));
    } else if (phase.kind === 'loading') {
      const bar = h('progress', { max: '1', 'aria-label': 'Loading' });
      if (phase.progress !== null) bar.value = phase.progress;
      const percent = phase.progress === null ? '' : ` ${Math.round(phase.progress * 100)} %`;
      this.setNote('loading', card('wait', `Loading ${phase.what ?? 'the model'}…${percent}`, 'Your message is sent as soon as it is ready.', [['Stop', () => this.actions.stop()]], bar));
    }
  }

  setNote(kind, element) {
    // A button that has the focus keeps it while only the text beside it changes.
    const old = this.note.querySelector('.card p');
    const fresh = element?.querySelector?.('.card p');
    if (kind === 'busy' && this.noted === 'busy' && old && fresh) {
      old.textContent = fresh.textContent;
      return;
    }
    this.noted = kind;
    this.note.replaceChildren(...(element ? [element] : []));
  }

  /** What an answer that did not end well says, and what can be done. */
  showNote(run, last, busy) {
    if (run) return;
    const { node, actions } = this;
    const retry = ['Try again', () => actions.regenerate(node)];
    const goOn = ['Continue', () => actions.goOn(node)];
    const buttons = (...list) => (last && !busy ? list : []);
    this.setNote(null);
    if (node.state === 'running') this.setNote('other', card('wait', 'This answer is being written in another tab', '', []));
    else if (node.state === 'error') {
      const fix = node.error?.kind === 'key' ? [['Enter the key', () => actions.askKey(node)]] : [];
      this.setNote('error', card('bad', node.error?.title ?? 'The answer failed', node.error?.detail ?? '', buttons(...fix, retry)));
    } else if (node.state === 'partial') {
      this.setNote('partial', card('warn', node.error?.title ?? 'This answer was cut off', node.error?.detail ?? '', buttons(...(node.content ? [goOn] : []), retry)));
    } else if (node.state === 'stopped') {
      this.setNote('stopped', h('p', { class: 'faint ended' }, 'Stopped. ', ...buttons(...(node.content ? [goOn] : [])).map(([label, click]) => h('button', { type: 'button', class: 'link-button', text: label, on: { click } }))));
    } else if (node.finish === 'length') {
      this.setNote('length', h('p', { class: 'faint ended' }, 'The limit of tokens is reached. ', ...buttons(goOn).map(([label, click]) => h('button', { type: 'button', class: 'link-button', text: label, on: { click } }))));
    } else if (node.finish === 'tool_calls' && last && node.calls?.length) this.setNote('calls', this.resultForm());
    else if (!node.content && !node.calls?.length) this.setNote('empty', h('p', { class: 'faint ended', text: node.reasoning ? 'The model thought, and said nothing.' : 'The answer is empty.' }));
  }

  /** A person stands in for the tools: this page runs none. */
  resultForm() {
    const areas = this.node.calls.map((call, i) => h('textarea', { rows: '2', 'aria-label': `Result of ${call.name}`, placeholder: `Result of ${call.name}`, data: { call: i } }));
    return h('form', {
      class: 'results',
      on: {
        submit: (event) => {
          event.preventDefault();
          this.actions.results(this.node, areas.map((area) => area.value));
        },
      },
    }, ...areas, h('button', { class: 'button', text: areas.length > 1 ? 'Send the results' : 'Send the result' }));
  }

  showFoot(run, versions, busy) {
    const { node, actions } = this;
    if (run) {
      this.foot.replaceChildren();
      return;
    }
    this.foot.replaceChildren(...[
      versionArrows(node, versions, actions),
      h('span', { class: 'actions' },
        node.content ? copyButton('Copy answer', () => node.content) : null,
        iconButton('refresh', 'Answer again', () => actions.regenerate(node), { disabled: busy }),
        iconButton('fork', 'Continue from here in a new chat', () => actions.fork(node))),
      node.stats ? statsLine(node) : null,
    ].filter(Boolean));
  }
}

function card(kind, title, text, buttons, extra = null) {
  return h('div', { class: `card ${kind}`, role: kind === 'bad' ? 'alert' : null },
    h('strong', {}, kind === 'wait' ? null : icon('warn'), title), text ? h('p', { text }) : null, extra,
    buttons.length ? h('div', { class: 'card-buttons' }, buttons.map(([label, click]) => h('button', { type: 'button', class: 'button', text: label, on: { click } }))) : null);
}

const seconds = (n) => (n < 9.95 ? `${n.toFixed(n < 0.995 ? 2 : 1)} s` : `${Math.round(n)} s`);

/** Speed, first token and device in a line; all figures below it when it is opened. */
function statsLine(node) {
  const { stats } = node;
  const short = [
    stats.speed ? `${stats.speed.toFixed(stats.speed < 99.5 ? 1 : 0)} tok/s` : null,
    stats.first === undefined ? null : `${seconds(stats.first)} to first token`,
    stats.device ?? null,
  ].filter(Boolean);
  const rows = [
    ['Model', node.model], ['Device', stats.device],
    ['Prompt', stats.prompt === undefined ? null : `${count(stats.prompt)} tokens${stats.cached ? `, ${count(stats.cached)} of them cached` : ''}`],
    ['Answer', stats.output === undefined ? null : `${count(stats.output)} tokens`],
    ['Prompt read in', stats.prefill === undefined ? null : seconds(stats.prefill)],
    ['Answer written in', stats.decode === undefined ? null : seconds(stats.decode)],
  ].filter(([, value]) => value);
  return h('details', { class: 'stats' }, h('summary', { text: short.join(' · ') || 'Figures', title: 'More figures' }), h('dl', {}, rows.map(([name, value]) => [h('dt', { text: name }), h('dd', { text: value })]).flat()));
}
