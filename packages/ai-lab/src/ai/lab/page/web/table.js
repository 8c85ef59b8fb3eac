// The table of trials: sorting, filtering, columns, averages over runs that repeat each other, selection.

import * as address from './address.js';
import { isKept } from './api.js';
import { byWeight, checkbox, colorOf, dashOf, element, named, show, swatch, when } from './dom.js';
import { saveCsv } from './download.js';
import { average, tellSpread } from './groups.js';

const BASICS = ['name', 'state', 'step', 'started', 'score'];
const PAGE = 200; // rows drawn at once; scrolling to their end draws as many more
const SORT = { column: 'started', down: true };
const GROUPS = { trial: '', config: 'Configuration', last: 'Last values' };

export class Table {
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.trials = [];
    this.known = new Map(); // every trial, and every row of several, by identity
    this.averaged = [];
    this.selected = [];
    this.limit = PAGE;
    this.rows = new Map(); // the rows drawn last, each with what it was drawn from
    this.sort = address.get('sort', SORT);
    this.hidden = new Set(address.get('hidden', []));
    this.over = address.get('over', '');
    this.head = document.querySelector('#runs thead');
    this.body = document.querySelector('#runs tbody');
    this.filter = document.querySelector('#filter');
    this.filter.value = address.get('filter', '');
    this.filter.addEventListener('input', () => { this.limit = PAGE; address.set('filter', this.filter.value, ''); this.draw(); });
    this.chooser = document.querySelector('#over');
    this.chooser.addEventListener('change', () => {
      this.over = this.chooser.value;
      address.set('over', this.over, '');
      this.update(this.trials);
      this.onSelect();
    });
    document.querySelector('#csv').addEventListener('click', () => this.save());
    const runs = document.querySelector('#runs');
    runs.addEventListener('scroll', () => {
      if (this.limit > this.body.childElementCount || runs.scrollTop + 2 * runs.clientHeight < runs.scrollHeight) return;
      this.limit += PAGE;
      this.draw();
    });
    document.querySelector('#clear').addEventListener('click', () => this.select([]));
    document.addEventListener('keydown', event => {
      if (event.key === '/' && !event.target.closest('input, select, textarea')) { event.preventDefault(); this.filter.focus(); }
      if (event.key === 'Escape' && event.target === this.filter) { this.filter.value = ''; address.set('filter', '', ''); this.draw(); }
    });
  }

  update(trials) {
    this.trials = trials;
    this.averaged = average(trials, this.over);
    this.known = new Map([...trials, ...this.averaged].map(row => [row.id, row]));
    const ownerOf = new Map(this.averaged.flatMap(row => (row.members ?? [row]).map(trial => [trial.id, row.id])));
    this.selected = [...new Set(this.selected.map(id => ownerOf.get(id)).filter(Boolean))];
    this.drawOver();
    this.draw();
  }

  selectedRows() { return this.selected.map(id => this.known.get(id)).filter(Boolean); }

  // What may be averaged over: every key that trials are configured by, of several values.
  drawOver() {
    const values = new Map();
    for (const trial of this.trials) for (const [key, value] of Object.entries(trial.config)) values.set(key, (values.get(key) ?? new Set()).add(value));
    const keys = [...values].filter(([key, seen]) => seen.size > 1 || key === this.over).map(([key]) => key).sort((a, b) => (b === 'seed') - (a === 'seed') || a.localeCompare(b));
    if (keys.join('\n') === [...this.chooser.options].slice(1).map(option => option.value).join('\n')) return;
    this.chooser.replaceChildren(element('option', { value: '' }, 'nothing'), ...keys.map(key => element('option', { value: key }, key)));
    this.chooser.value = this.over;
    this.chooser.parentElement.hidden = !keys.length;
  }

  save() {
    const columns = this.columns().filter(column => !this.hidden.has(column));
    const heads = columns.flatMap(column => this.over && (column === 'score' || column.startsWith('last ')) ? [column, `${column} deviation`] : [column]);
    saveCsv('trials', [['id', ...heads], ...this.visible().map(row => [row.id, ...columns.flatMap(column => {
      const value = column === 'started' && row.created ? new Date(row.created * 1000).toISOString() : this.value(row, column);
      return this.over && (column === 'score' || column.startsWith('last ')) ? [value, row.spreads?.[column]?.deviation] : [value];
    })])]);
  }

  columns() {
    const names = part => [...new Set(this.averaged.flatMap(trial => Object.keys(trial[part])))];
    const basics = BASICS.filter(name => name !== 'score' || this.trials.some(trial => trial.score != null));
    return [...basics, ...names('config').map(name => 'config ' + name), ...names('metrics').sort(byWeight).map(name => 'last ' + name)];
  }

  value(trial, column) {
    if (column === 'started') return trial.created;
    if (column.startsWith('config ')) return trial.config[column.slice(7)] === null ? 'None' : trial.config[column.slice(7)];
    if (column.startsWith('last ')) return trial.metrics[column.slice(5)];
    return trial[column];
  }

  visible() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = this.averaged.filter(trial => words.every(word => matches(trial, word)));
    const { column, down } = this.sort;
    const sign = down ? -1 : 1;
    const pinned = trial => trial.tags.includes('pinned');
    return shown.sort((a, b) => {
      if (pinned(a) !== pinned(b)) return pinned(b) - pinned(a);
      const [x, y] = [this.value(a, column), this.value(b, column)];
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }));
    });
  }

  draw() {
    const columns = this.columns().filter(column => !this.hidden.has(column));
    const rows = this.visible();
    this.drawChooser();
    this.drawHead(columns, rows);
    const layout = columns.join('\n');
    const drawn = new Map(rows.slice(0, this.limit).map(trial => {
      const state = JSON.stringify([layout, trial, this.selected.indexOf(trial.id)]);
      const before = this.rows.get(trial.id);
      return [trial.id, before?.state === state ? before : { state, row: this.row(trial, columns) }];
    }));
    const wanted = [...drawn.values()].map(one => one.row);
    if (wanted.length !== this.body.childElementCount || wanted.some((row, index) => row !== this.body.children[index])) this.body.replaceChildren(...wanted);
    this.rows = drawn;
    const count = this.trials.length;
    document.querySelector('#status').textContent = `${rows.length === this.averaged.length ? '' : `${rows.length} of `}${this.averaged.length === count ? '' : `${this.averaged.length} means of `}${count} ${count === 1 ? 'trial' : 'trials'}`;
    document.querySelector('#clear').hidden = !this.selected.length;
  }

  drawHead(columns, rows) {
    const groupOf = column => column.includes(' ') ? column.split(' ', 1)[0] : 'trial';
    const groups = Object.keys(GROUPS).map(group => [group, columns.filter(column => groupOf(column) === group).length]).filter(([, count]) => count);
    const all = element('input', { type: 'checkbox', 'aria-label': 'Select all shown', onclick: () => this.select(all.checked ? rows.filter(trial => !isLost(trial)).map(trial => trial.id) : []) });
    all.checked = rows.length > 0 && rows.every(trial => this.selected.includes(trial.id));
    const top = groups.map(([group, count]) => element('th', { class: 'group', scope: 'colgroup', colspan: count }, GROUPS[group]));
    const firsts = new Set(Object.keys(GROUPS).slice(1).map(group => columns.find(column => groupOf(column) === group)));
    this.head.replaceChildren(element('tr', {}, element('td', { class: 'group' }), ...top),
      element('tr', {}, element('th', { class: 'box' }, all), ...columns.map(column => this.headCell(column, firsts.has(column)))));
    this.firsts = firsts;
  }

  headCell(column, first) {
    const { column: sorted, down } = this.sort;
    const numeric = column !== 'started' && this.trials.some(trial => typeof this.value(trial, column) === 'number');
    const turn = () => {
      this.sort = { column, down: sorted === column ? !down : true };
      address.set('sort', this.sort, SORT, true);
      this.draw();
      this.head.querySelector(`[data-column="${CSS.escape(column)}"]`)?.focus();
    };
    return element('th', {
      tabindex: 0, 'data-column': column, title: column, class: (first ? 'first' : '') + (numeric ? ' number' : ''), 'aria-sort': sorted !== column ? 'none' : down ? 'descending' : 'ascending', onclick: turn,
      onkeydown: event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); turn(); } },
    }, column.replace(/^(config|last) /, ''), element('span', { class: 'sort' }, sorted === column ? (down ? ' ↓' : ' ↑') : ''));
  }

  row(trial, columns) {
    const place = this.selected.indexOf(trial.id);
    const toggle = () => this.select(place < 0 ? [...this.selected, trial.id] : this.selected.filter(id => id !== trial.id));
    const box = element('input', { type: 'checkbox', 'aria-label': `Select ${trial.name}`, 'data-id': trial.id, onclick: event => { event.stopPropagation(); toggle(); } });
    box.checked = place >= 0;
    box.disabled = isLost(trial);
    return element('tr', { 'aria-selected': String(place >= 0), onclick: box.disabled ? () => {} : toggle }, element('td', { class: 'box' }, box), ...columns.map(column => this.cell(trial, column, place)));
  }

  // Brings a trial's row into sight.
  reveal(id) {
    this.limit = Math.max(this.limit, this.visible().findIndex(trial => trial.id === id) + PAGE);
    this.draw();
    this.rows.get(id)?.row.scrollIntoView({ block: 'nearest' });
  }

  cell(trial, column, place) {
    const value = this.value(trial, column);
    const first = this.firsts.has(column) ? ' first' : '';
    if (column === 'started') return element('td', { title: value ? new Date(value * 1000).toLocaleString() : '' }, when(value));
    if (column === 'state') return element('td', {}, element('span', { class: 'state ' + (STATES.has(value) ? value : '') }, value));
    if (column === 'name') return element('td', { title: [trial.path, ...trial.problems].join('\n') }, swatch(place >= 0 ? colorOf(place) : 'transparent', place >= 0 ? dashOf(place) : []), named(value), trial.members ? element('span', { class: 'soft' }, ` ×${trial.members.length}`) : null, ...trial.tags.map(tag => element('span', { class: 'tag' }, tag)), trial.note ? element('span', { class: 'soft' }, ` ${trial.note}`) : null, trial.problems.length ? element('span', { class: 'problem' }, ` ${trial.problems[0]}`) : null);
    if (column === 'step' && trial.state === 'running' && trial.steplimit) return element('td', { class: 'number' }, `${value ?? 0} of ${trial.steplimit}`);
    if (trial.spreads?.[column]) return element('td', { title: `of ${trial.spreads[column].n}`, class: 'number' + first }, tellSpread(trial.spreads[column]));
    const broken = column.startsWith('last ') && typeof value === 'string' ? ' broken' : '';
    return element('td', { title: show(value), class: (typeof value === 'number' || broken ? 'number' : '') + broken + first }, show(value));
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
    place.replaceChildren(...this.columns().map(column => checkbox(column, !this.hidden.has(column), checked => {
      if (checked) this.hidden.delete(column); else this.hidden.add(column);
      address.set('hidden', [...this.hidden], [], true);
      this.draw();
    })));
  }
}

// A word of the filter: part of the name or state, or a rule like lr=0.1 or val_loss<0.5.
function matches(trial, word) {
  const rule = word.match(/^([^<>=]+)(<=|>=|=|<|>)(.+)$/);
  if (!rule) return trial.name.toLowerCase().includes(word) || trial.state.includes(word) || trial.tags.some(tag => tag.toLowerCase() === word) || trial.note.toLowerCase().includes(word);
  const [, name, sign, wanted] = rule;
  const values = [{ name: trial.name, state: trial.state, step: trial.step, score: trial.score }, trial.config, trial.metrics]
    .flatMap(part => Object.entries(part)).filter(([key, value]) => key.toLowerCase() === name && value != null).map(([, value]) => value);
  return values.some(value => {
    if (sign === '=') return String(value).toLowerCase() === wanted || Number(value) === Number(wanted);
    const [x, y] = [Number(value), Number(wanted)];
    return { '<': x < y, '>': x > y, '<=': x <= y, '>=': x >= y }[sign];
  });
}

// Without a marker that can be read, or published, nothing of a trial can be shown.
const isLost = trial => trial.id.startsWith('damaged-') || !isKept(trial.id);
const STATES = new Set(['finished', 'failed', 'dead', 'running', 'pruned', 'stopped', 'interrupted', 'created', 'damaged', 'waiting']);
