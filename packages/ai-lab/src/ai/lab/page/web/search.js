// A search's trials: parallel coordinates, and the score against each hyper-parameter; a click selects a trial.

import { choice, element, empty, show } from './dom.js';

const TOGETHER = 'together';
let chosen = null;

// What a trial chose: None is a choice like another; undefined where it never asked, as of a conditional parameter.
const choiceOf = (trial, name) => !(name in trial.hparams) ? undefined : trial.hparams[name] ?? 'None';

// Of the selected trials' experiment, else of all that are shown.
export async function searchView(page, anew) {
  const scored = page.shown().filter(trial => trial.state === 'finished' && typeof trial.score === 'number' && Object.keys(trial.hparams).length);
  if (!scored.length) { page.show(empty('No trials with hyper-parameters and a score here: run an ai.Experiment, or clear the filter.')); return; }
  const present = [...new Set(scored.map(trial => trial.experiment))].filter(id => page.experiments[id]);
  const fit = page.trials.map(trial => trial.experiment).find(id => present.includes(id));
  if (!present.includes(chosen) && (chosen !== TOGETHER || present.length < 2)) chosen = fit ?? present[0] ?? TOGETHER;
  const trials = chosen === TOGETHER ? scored : scored.filter(trial => trial.experiment === chosen);
  const { direction } = page.experiments[chosen] ?? { direction: 'min' };
  const best = trials.reduce((a, b) => (direction === 'max' ? b.score > a.score : b.score < a.score) ? b : a);
  const state = JSON.stringify([chosen, present, trials.map(trial => [trial.id, trial.score]), page.trials.map(trial => trial.id)]);
  if (!anew && page.view.dataset.search === state) return;
  page.view.dataset.search = state;
  const names = [...new Set(trials.flatMap(trial => Object.keys(trial.hparams)))];
  const look = { names, direction, best, marked: new Map(page.trials.map(trial => [trial.id, page.look(trial.id).color])), open: trial => page.select([trial.id]) };
  const told = [...present.map(id => [id, page.experiments[id].name]), ...(present.length > 1 ? [[TOGETHER, 'all together']] : [])];
  page.show(element('div', { class: 'controls' }, told.length ? choice('Experiment', told, chosen, value => { chosen = value; page.redraw(true); }) : null,
    element('span', {}, `${trials.length} scored trials; best (${direction}) `, element('b', {}, show(best.score)), ' by ',
      element('button', { type: 'button', onclick: () => look.open(best) }, best.name.split('/').at(-1)), ' ',
      element('span', { class: 'soft' }, Object.keys(best.hparams).map(name => `${name} ${show(choiceOf(best, name))}`).join(', ')))),
  parallel(trials, look, page.view.clientWidth - 60), element('div', { class: 'charts' }, ...names.map(name => scatter(trials, name, look))));
}

const goodness = (axis, trial, direction) => direction === 'max' ? axis.place(trial.score) : 1 - axis.place(trial.score);
const shade = part => `color-mix(in oklab, var(--accent) ${Math.round(100 * part)}%, var(--weak))`;
const tip = (trial, text) => element('title', {}, `${trial.name}: ${text}`);

function parallel(trials, { names, direction, marked, open }, room) {
  const [width, height, top] = [Math.max(room, names.length * 150 + 160), 300, 34];
  const axes = [...names.map(name => makeAxis(name, trials.map(trial => choiceOf(trial, name)))), makeAxis('score', trials.map(trial => trial.score))];
  const x = index => 60 + index * (width - 150) / (axes.length - 1);
  const y = (axis, value) => height - 20 - axis.place(value) * (height - 20 - top);
  const scores = axes.at(-1);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': 'Parallel coordinates of hyper-parameters and score' });
  const inOrder = [...trials].sort((a, b) => marked.has(a.id) - marked.has(b.id) || goodness(scores, a, direction) - goodness(scores, b, direction)); // the best on top
  for (const trial of inOrder) {
    const points = axes.map((axis, index) => [x(index), y(axis, index === axes.length - 1 ? trial.score : choiceOf(trial, axis.name))]);
    const path = element('path', { class: marked.has(trial.id) ? 'run marked' : 'run', d: curve(points), onclick: () => open(trial) }, tip(trial, show(trial.score)));
    path.style.stroke = marked.get(trial.id) ?? shade(goodness(scores, trial, direction));
    svg.append(path);
  }
  axes.forEach((axis, index) => {
    svg.append(element('line', { class: 'axis', x1: x(index), x2: x(index), y1: top, y2: height - 20 }));
    svg.append(element('text', { x: x(index) + Math.max(0, index ? 0 : 3.2 * Math.min(24, axis.name.length) - 55), y: 14, 'text-anchor': 'middle', 'font-weight': 600 }, cut(axis.name, 24)));
    for (const value of axis.ticks) svg.append(element('text', { class: 'tick', x: x(index) + 6, y: y(axis, value) + 4 }, cut(show(value), 18)));
  });
  return element('figure', { class: 'whole-row' }, element('figcaption', {}, 'Hyper-parameters and score ', element('span', { class: 'soft' }, 'the stronger, the better')), svg);
}

// A line through the points; where a trial has no such parameter the line has a gap.
const curve = points => points.map(([x, y], index) => {
  if (!Number.isFinite(y)) return '';
  const [px, py] = points[index - 1] ?? [NaN, NaN];
  if (!Number.isFinite(py)) return `M${(x - 4).toFixed(1)},${y.toFixed(1)}H${x.toFixed(1)}`;
  const middle = ((px + x) / 2).toFixed(1);
  return `C${middle},${py.toFixed(1)} ${middle},${y.toFixed(1)} ${x.toFixed(1)},${y.toFixed(1)}`;
}).join('');

function scatter(trials, name, { direction, marked, open }) {
  const [width, height] = [420, 220];
  const [horizontal, vertical] = [makeAxis(name, trials.map(trial => choiceOf(trial, name))), makeAxis('score', trials.map(trial => trial.score))];
  const x = value => 72 + horizontal.place(value) * (width - 104);
  const y = value => height - 34 - vertical.place(value) * (height - 54);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': `Score against ${name}` });
  svg.append(element('line', { class: 'axis', x1: 60, x2: width - 20, y1: height - 25, y2: height - 25 }), element('line', { class: 'axis', x1: 60, x2: 60, y1: 10, y2: height - 25 }));
  for (const value of horizontal.ticks) svg.append(element('text', { class: 'tick', x: x(value), y: height - 10, 'text-anchor': 'middle' }, cut(show(value), 12)));
  for (const value of vertical.ticks) svg.append(element('text', { class: 'tick', x: 54, y: y(value) + 4, 'text-anchor': 'end' }, show(value)));
  for (const trial of trials) {
    const value = choiceOf(trial, name);
    if (value === undefined) continue;
    const dot = element('circle', { class: marked.has(trial.id) ? 'run marked' : 'run', cx: x(value), cy: y(trial.score), r: marked.has(trial.id) ? 5 : 3.5, onclick: () => open(trial) },
      tip(trial, `${name} ${show(value)}, score ${show(trial.score)}`));
    dot.style.fill = marked.get(trial.id) ?? shade(goodness(vertical, trial, direction));
    svg.append(dot);
  }
  return element('figure', {}, element('figcaption', { title: name }, element('span', {}, `Score against ${name}`), horizontal.log ? element('span', { class: 'soft' }, ' logarithmic') : null), svg);
}

const cut = (text, length) => text.length > length ? text.slice(0, length - 1) + '…' : text;

// An axis from 0 to 1: numbers in order of size (by decades where most lie close to the least), others side by side.
function makeAxis(name, values) {
  const present = values.filter(value => value != null);
  if (present.every(value => typeof value === 'number')) {
    const low = present.reduce((a, b) => Math.min(a, b), Infinity);
    const high = present.reduce((a, b) => Math.max(a, b), -Infinity);
    const known = [...new Set(present)].sort((a, b) => a - b);
    const log = low > 0 && high / low > 20 && known[known.length >> 1] - low < 0.15 * (high - low);
    const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const middle = log ? Math.exp((a + b) / 2) : (a + b) / 2;
    const place = value => value == null ? NaN : b === a ? 0.5 : ((log ? Math.log(value) : value) - a) / (b - a);
    const apart = known.slice(1).every((value, index) => place(value) - place(known[index]) > 0.07);
    const ticks = known.length <= 4 && apart ? known : [low, Number(middle.toPrecision(2)), high];
    return { name, log, place, ticks };
  }
  const known = [...new Set(present.map(String))].sort();
  return { name, place: value => value == null ? NaN : known.length === 1 ? 0.5 : known.indexOf(String(value)) / (known.length - 1), ticks: known };
}
