// The table of trials: sorting, filtering, columns, selection.

import { colorOf, element, memory, show } from './dom.js';

const BASICS = ['name', 'state', 'step', 'started', 'score'];

export class Table {
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.trials = [];
    this.selected = [];
    this.sort = memory.get('sort', { column: 'started', down: true });
    this.hidden = new Set(memory.get('hidden', []));
    this.head = document.querySelector('#runs thead');
    this.body = document.querySelector('#runs tbody');
    document.querySelector('#filter').addEventListener('input', () => this.draw());
    document.querySelector('#clear').addEventListener('click', () => this.select([]));
  }

  update(trials) {
    this.trials = trials;
    const known = new Set(trials.map(trial => trial.id));
    this.selected = this.selected.filter(id => known.has(id));
    this.draw();
  }

  columns() {
    const names = part => [...new Set(this.trials.flatMap(trial => Object.keys(trial[part])))];
    return [...BASICS, ...names('config').map(name => 'config ' + name), ...names('metrics').map(name => 'last ' + name)];
  }

  value(trial, column) {
    if (column === 'started') return trial.created;
    if (column.startsWith('config ')) return trial.config[column.slice(7)];
    if (column.startsWith('last ')) return trial.metrics[column.slice(5)];
    return trial[column];
  }

  visible() {
    const words = document.querySelector('#filter').value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = this.trials.filter(trial => words.every(word => this.matches(trial, word)));
    const { column, down } = this.sort;
    const sign = down ? -1 : 1;
    return shown.sort((a, b) => {
      const [x, y] = [this.value(a, column), this.value(b, column)];
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }));
    });
  }

  matches(trial, word) {
    const rule = word.match(/^([^<>=]+)(<=|>=|=|<|>)(.+)$/);
    if (!rule) return trial.name.toLowerCase().includes(word) || trial.state.includes(word);
    const [, name, sign, wanted] = rule;
    const columns = { ...trial.config, ...trial.metrics, name: trial.name, state: trial.state, step: trial.step, score: trial.score };
    const key = Object.keys(columns).find(one => one.toLowerCase() === name);
    const value = columns[key];
    if (value == null) return false;
    if (sign === '=') return String(value).toLowerCase() === wanted || Number(value) === Number(wanted);
    const [x, y] = [Number(value), Number(wanted)];
    return { '<': x < y, '>': x > y, '<=': x <= y, '>=': x >= y }[sign];
  }

  draw() {
    const columns = this.columns().filter(column => !this.hidden.has(column));
    this.drawChooser();
    this.head.replaceChildren(element('tr', {}, element('th', {}), ...columns.map(column => this.headCell(column))));
    const rows = this.visible();
    this.body.replaceChildren(...rows.map(trial => this.row(trial, columns)));
    document.querySelector('#status').textContent = `${rows.length} of ${this.trials.length} trials`;
  }

  headCell(column) {
    const { column: sorted, down } = this.sort;
    const turn = () => {
      this.sort = { column, down: sorted === column ? !down : true };
      memory.set('sort', this.sort);
      this.draw();
      this.head.querySelector(`[data-column="${CSS.escape(column)}"]`)?.focus();
    };
    return element('th', {
      tabindex: 0, 'data-column': column, title: column, 'aria-sort': sorted !== column ? 'none' : down ? 'descending' : 'ascending', onclick: turn,
      onkeydown: event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); turn(); } },
    }, column.replace(/^(config|last) /, ''), sorted === column ? (down ? ' ↓' : ' ↑') : '');
  }

  row(trial, columns) {
    const place = this.selected.indexOf(trial.id);
    const toggle = () => this.select(place < 0 ? [...this.selected, trial.id] : this.selected.filter(id => id !== trial.id));
    const box = element('input', { type: 'checkbox', 'aria-label': `Select ${trial.name}`, 'data-id': trial.id, onclick: event => { event.stopPropagation(); toggle(); } });
    box.checked = place >= 0;
    const cells = columns.map(column => {
      const value = this.value(trial, column);
      if (column === 'started') return element('td', {}, value ? new Date(value * 1000).toLocaleString() : '');
      if (column === 'state') return element('td', { class: STATES.has(value) ? value : '' }, value);
      if (column === 'name') return element('td', { title: trial.path }, place >= 0 ? element('span', { class: 'swatch', color: colorOf(place) }) : null, value);
      return element('td', { title: show(value) }, show(value));
    });
    return element('tr', { 'aria-selected': String(place >= 0), onclick: toggle }, element('td', {}, box), ...cells);
  }

  select(ids) {
    const focus = document.activeElement?.dataset?.id;
    this.selected = ids;
    this.draw();
    if (focus) this.body.querySelector(`[data-id="${CSS.escape(focus)}"]`)?.focus();
    this.onSelect();
  }

  drawChooser() {
    const place = document.querySelector('#columns > div');
    if (document.querySelector('#columns').open && place.childElementCount) return;
    place.replaceChildren(...this.columns().map(column => {
      const box = element('input', { type: 'checkbox', onchange: () => {
        if (box.checked) this.hidden.delete(column); else this.hidden.add(column);
        memory.set('hidden', [...this.hidden]);
        this.draw();
      } });
      box.checked = !this.hidden.has(column);
      return element('label', {}, box, ' ', column);
    }));
  }
}

const STATES = new Set(['finished', 'failed', 'dead', 'running', 'pruned', 'stopped', 'interrupted', 'created']);
