// The field at the foot: text, files, drafts, and the meter of the context.

import { h, byId, icon, iconButton, toast, bytes, count, debounce, announce } from './dom.js';

const FILE_BYTES_MAX = 512 * 1024;
const FILES_BYTES_MAX = 1024 * 1024;
const FILES_MAX = 20;
// English text has about this many characters a token; only what is not sent yet is guessed.
const CHARACTERS_PER_TOKEN = 3.8;

export class Composer {
  /** `actions`: send(text, files), stop(), editLast(), draft(text, files). */
  constructor(actions) {
    this.actions = actions;
    this.form = byId('composer');
    this.area = byId('prompt');
    this.chips = byId('chips');
    this.button = byId('send');
    this.files = [];
    this.busy = false;
    this.used = 0;
    this.context = null;
    this.keep = debounce(() => actions.draft(this.area.value, this.files), 250);
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.submit();
    });
    this.area.addEventListener('input', () => this.changed());
    this.area.addEventListener('keydown', (event) => this.key(event));
    this.area.addEventListener('paste', (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.addFiles([...event.clipboardData.files]);
    });
    const picker = byId('file-picker');
    byId('attach').addEventListener('click', () => picker.click());
    picker.addEventListener('change', () => {
      this.addFiles([...picker.files]);
      picker.value = '';
    });
    this.acceptDrops();
  }

  key(event) {
    if (event.isComposing) return;
    if (event.key === 'Enter' && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      if (!this.busy) this.submit();
    } else if (event.key === 'ArrowUp' && !this.area.value && !this.busy) {
      if (this.actions.editLast()) event.preventDefault();
    }
  }

  submit() {
    if (this.busy) {
      this.actions.stop();
      return;
    }
    const text = this.area.value.trim();
    if (!text && !this.files.length) return;
    const files = this.files;
    this.set({ text: '', files: [] });
    this.keep();
    this.keep.flush();
    this.actions.send(text, files);
  }

  /** Shows a draft. */
  set({ text, files }) {
    this.area.value = text;
    this.files = files;
    this.showFiles();
    this.resize();
    this.showButton();
    this.showMeter();
  }

  changed() {
    this.resize();
    this.showButton();
    this.showMeter();
    this.keep();
  }

  resize() {
    this.area.style.height = 'auto';
    this.area.style.height = `${Math.min(this.area.scrollHeight, Math.max(120, innerHeight * 0.4))}px`;
  }

  setBusy(busy) {
    this.busy = busy;
    this.showButton();
  }

  showButton() {
    const label = this.busy ? 'Stop' : 'Send';
    this.button.disabled = !this.busy && !this.area.value.trim() && !this.files.length;
    if (this.button.getAttribute('aria-label') === label) return;
    this.button.setAttribute('aria-label', label);
    this.button.title = this.busy ? 'Stop (Escape)' : 'Send (Enter)';
    this.button.classList.toggle('stop', this.busy);
    this.button.replaceChildren(icon(this.busy ? 'stop' : 'send'));
  }

  /** `used` tokens of `context` are taken by the conversation so far. */
  setContext(used, context) {
    this.used = used;
    this.context = context;
    this.showMeter();
  }

  showMeter() {
    const meter = byId('meter');
    const typed = this.area.value.length + this.files.reduce((sum, file) => sum + file.text.length, 0);
    const guess = Math.ceil(typed / CHARACTERS_PER_TOKEN);
    meter.hidden = !this.context;
    if (!this.context) return;
    const share = Math.min(1, (this.used + guess) / this.context);
    const about = guess > 0 ? '≈ ' : '';
    const over = this.used + guess > this.context ? ' · too long' : '';
    byId('meter-text').textContent = `${about}${count(this.used + guess)} / ${count(this.context)}${over}`;
    byId('meter-fill').style.width = `${Math.max(share * 100, this.used ? 1.5 : 0)}%`;
    meter.classList.toggle('high', share > 0.8);
    meter.classList.toggle('full', share > 0.95);
    meter.setAttribute('aria-valuemax', String(this.context));
    meter.setAttribute('aria-valuenow', String(Math.min(this.context, this.used + guess)));
    meter.setAttribute('aria-valuetext', `${count(this.used + guess)} of ${count(this.context)} tokens of the context`);
    meter.title = share > 0.95 ? 'The context is nearly full: a new chat, or an earlier message edited, makes room' : 'Tokens of the context that this conversation takes';
  }

  async addFiles(list) {
    for (const file of list) {
      const problem = this.files.length >= FILES_MAX ? `${FILES_MAX} files are the most` : await this.addFile(file);
      if (problem) toast(problem);
    }
    this.showFiles();
    this.changed();
    this.area.focus();
  }

  /** Adds a file, or tells why not. */
  async addFile(file) {
    const name = file.name.replace(/[\u0000-\u001f\u007f\u202a-\u202e\u2066-\u2069]/g, '').slice(0, 120) || 'file';
    const sum = this.files.reduce((total, one) => total + one.size, 0);
    if (file.size > FILE_BYTES_MAX) return `“${name}” has ${bytes(file.size)}; the most is ${bytes(FILE_BYTES_MAX)}.`;
    if (sum + file.size > FILES_BYTES_MAX) return `“${name}” is too much: all files together may have ${bytes(FILES_BYTES_MAX)}.`;
    let content;
    try {
      content = new TextDecoder('utf-8', { fatal: true }).decode(await file.arrayBuffer());
    } catch (error) {
      if (error instanceof TypeError) return `“${name}” is no text file${file.type ? ` (${file.type})` : ''}. Only text can be added.`;
      return `“${name}” cannot be read: it may be a folder, or gone.`;
    }
    if (content.includes('\u0000')) return `“${name}” is no text file${file.type ? ` (${file.type})` : ''}. Only text can be added.`;
    if (!content.trim()) return `“${name}” is empty.`;
    this.files.push({ name, text: content, size: file.size });
    announce(`${name} added`);
    return null;
  }

  showFiles() {
    this.chips.replaceChildren(...this.files.map((file, i) => h('li', { class: 'chip' }, icon('file'), h('span', { class: 'file-name', text: file.name }), h('span', { class: 'faint', text: bytes(file.size ?? file.text.length) }),
      iconButton('close', `Remove ${file.name}`, () => {
        this.files.splice(i, 1);
        this.showFiles();
        this.changed();
        this.area.focus();
      }))));
    this.chips.hidden = !this.files.length;
  }

  acceptDrops() {
    const veil = byId('drop');
    let depth = 0;
    const holdsFiles = (event) => event.dataTransfer?.types.includes('Files');
    const show = (on) => {
      depth = on ? depth : 0;
      veil.hidden = !on;
    };
    addEventListener('dragenter', (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      depth += 1;
      show(true);
    });
    addEventListener('dragover', (event) => holdsFiles(event) && event.preventDefault());
    addEventListener('dragleave', (event) => {
      if (holdsFiles(event) && --depth <= 0) show(false);
    });
    addEventListener('drop', (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      show(false);
      const folders = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
      for (const folder of folders) toast(`“${folder.name}” is a folder; only files can be added.`);
      const names = new Set(folders.map((folder) => folder.name));
      this.addFiles([...event.dataTransfer.files].filter((file) => !names.has(file.name)));
    });
  }
}
