// Trials side by side: parallel coordinates, what matters by Optuna's judgement, and the outcome against each choice; a
// click selects a trial. Of a search its hyper-parameters and score, of any other trials what they differ in, and a metric.

import * as address from './address.js';
import { getJson } from './api.js';
import { choice, element, empty, show } from './dom.js';
import { average, tellSpread } from './groups.js';

const [TOGETHER, SELECTED, SHOWN] = ['together', 'selected', 'shown'];
let chosen = address.get('of', '');
let metric = address.get('by', '');
let wanted = address.get('best', 'min');

// What a trial chose: None is a choice like another; undefined where it never asked, as of a conditional parameter.
const choiceOf = (trial, name) => !(name in trial.hparams) ? undefined : trial.hparams[name] ?? 'None';

export async function searchView(page, anew) {
  const scored = average(page.shown(), 'seed').filter(trial => isScored(trial, page.experiments[trial.experiment]?.seeds) && Object.keys(trial.hparams).length);
  const present = [...new Set(scored.map(trial => trial.experiment))].filter(id => page.experiments[id]);
  const sets = [...present.map(id => [id, page.experiments[id].name]), ...(present.length > 1 ? [[TOGETHER, 'all searches']] : []),
    ...(page.trials.length > 1 ? [[SELECTED, 'the selected trials']] : []), ...(page.shown().length > 1 ? [[SHOWN, 'all that are shown']] : [])];
  if (!sets.length) { page.show(empty('Nothing to compare here: run an ai.Experiment, record more trials, or clear the filter.')); return; }
  const fit = page.trials.map(trial => trial.experiment).find(id => present.includes(id));
  if (!sets.some(([id]) => id === chosen)) chosen = fit ?? sets[0][0];
  const isAny = [SELECTED, SHOWN].includes(chosen);
  const importance = present.includes(chosen) ? await getJson(`api/importance/${chosen}`) : {};
  if (!page.still()) return;
  const set = isAny ? compared(chosen === SELECTED ? page.trials : page.shown()) : { trials: scored.filter(trial => chosen === TOGETHER || trial.experiment === chosen) };
  const direction = isAny ? wanted : page.experiments[chosen]?.direction ?? 'min';
  const state = JSON.stringify([chosen, sets, metric, direction, importance, set.trials.map(trial => [trial.id, trial.score, trial.state]), page.trials.map(trial => trial.id)]);
  if (!anew && page.view.dataset.search === state) return;
  page.view.dataset.search = state;
  const pick = (name, value, fallback) => { address.set(name, value, fallback); page.redraw(true); };
  const controls = element('div', { class: 'controls' }, choice('Compare', sets, chosen, value => { chosen = value; pick('of', value, ''); }),
    isAny ? choice('By', set.metrics.map(key => [key, key]), metric, value => { metric = value; pick('by', value, ''); }) : null,
    isAny ? choice('Best is the', [['min', 'smallest'], ['max', 'largest']], wanted, value => { wanted = value; pick('best', value, 'min'); }) : null);
  if (!set.trials.length) { page.show(controls, empty('None of these trials has a number to compare by.')); return; }
  const best = set.trials.reduce((a, b) => (direction === 'max' ? number(b.score) > number(a.score) : number(b.score) < number(a.score)) ? b : a);
  const drawn = set.trials.filter(trial => Number.isFinite(trial.score));
  const infinite = set.trials.length - drawn.length;
  const names = [...new Set(set.trials.flatMap(trial => Object.keys(trial.hparams)))];
  const marked = new Map(set.trials.flatMap(row => (row.members ?? [row]).some(trial => page.trials.some(one => one.id === trial.id)) ? [[row.id, page.look((row.members ?? [row]).find(trial => page.trials.some(one => one.id === trial.id)).id).color]] : []));
  const open = row => page.select((row.members ?? [row]).map(trial => trial.id));
  const look = { names, direction, best, marked, open, outcome: isAny ? metric : 'score' };
  const told = best.spreads?.score ? tellSpread(best.spreads.score) : show(best.score);
  controls.append(element('span', {}, `${set.trials.length} scored ${set.trials.some(row => row.members) ? 'configurations' : 'trials'}${infinite ? ` (${infinite} infinite, not drawn)` : ''}; best${best.members ? ' mean' : ''} (${direction}) `, element('b', {}, told), ' by ',
    element('button', { type: 'button', onclick: () => open(best) }, best.name.split('/').at(-1)), ' ',
    element('span', { class: 'soft' }, Object.keys(best.hparams).map(name => `${name} ${show(choiceOf(best, name))}`).join(', '))));
  if (!drawn.length) { page.show(controls, empty('None of these scores is finite.')); return; }
  page.show(controls, names.length ? parallel(drawn, look, page.view.clientWidth - 60) : empty('These trials do not differ in their configuration.'),
    element('div', { class: 'charts' }, present.includes(chosen) ? bars(importance) : null, ...names.map(name => scatter(drawn, name, look))));
}

// What is infinite comes as text, and may be the best, as for Optuna.
const number = score => score === 'inf' ? Infinity : score === '-inf' ? -Infinity : score;

// All its runs have a score: the mean of some would be another number.
const isScored = (trial, seeds = 1) => typeof number(trial.score) === 'number' && !Number.isNaN(trial.score) && trial.state === 'finished' && (trial.members?.length ?? 1) >= seeds;

// Any trials as a search sees its own: what they differ in as choices, the metric's last value as score.
function compared(trials) {
  const metrics = [...new Set(trials.flatMap(trial => [...(typeof trial.score === 'number' ? ['score'] : []), ...Object.keys(trial.metrics)]))];
  if (!metrics.includes(metric)) metric = metrics[0] ?? '';
  const keys = [...new Set(trials.flatMap(trial => Object.keys(trial.config)))].filter(key => new Set(trials.map(trial => JSON.stringify(trial.config[key]))).size > 1);
  const rows = trials.map(trial => ({ ...trial, hparams: Object.fromEntries(keys.filter(key => key in trial.config).map(key => [key, trial.config[key]])), score: metric === 'score' ? trial.score : trial.metrics[metric] }));
  return { metrics, trials: rows.filter(row => Number.isFinite(row.score)) };
}

// How much each choice decides the score.
function bars({ parameters, reason }) {
  const rows = Object.entries(parameters ?? {}).sort(([, a], [, b]) => b - a);
  const table = element('table', { class: 'bars' }, element('tbody', {}, ...rows.map(([name, share]) => {
    const bar = element('span', { class: 'share' });
    bar.style.width = `${100 * share}%`;
    return element('tr', {}, element('th', { scope: 'row', title: name }, cut(name, 30)), element('td', {}, bar), element('td', { class: 'number' }, show(Number(share.toPrecision(2)))));
  })));
  return element('figure', { 'aria-label': 'Importance' }, element('figcaption', {}, 'Importance ', element('span', { class: 'soft' }, 'by Optuna, of what every trial chose')), rows.length ? table : element('p', { class: 'empty' }, reason ?? 'None is told.'));
}

const goodness = (axis, trial, direction) => direction === 'max' ? axis.place(trial.score) : 1 - axis.place(trial.score);
const shade = part => `color-mix(in oklab, var(--accent) ${Math.round(100 * part)}%, var(--weak))`;
// What a pointer or a key on a line or dot does.
const chooser = (trial, open) => ({ tabindex: 0, role: 'button', 'aria-label': `Select ${trial.name}, ${show(trial.score)}`, onclick: () => open(trial), onkeydown: event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); open(trial); } } });
const tip = (trial, text) => element('title', {}, `${trial.name}: ${text}`);

function parallel(trials, { names, direction, marked, open, outcome }, room) {
  const [width, height, top] = [Math.max(room, names.length * 150 + 160), 300, 34];
  const axes = [...names.map(name => makeAxis(name, trials.map(trial => choiceOf(trial, name)))), makeAxis(outcome, trials.map(trial => trial.score))];
  const x = index => 60 + index * (width - 150) / (axes.length - 1);
  const y = (axis, value) => height - 20 - axis.place(value) * (height - 20 - top);
  const scores = axes.at(-1);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'group', 'aria-label': `Parallel coordinates of choices and ${outcome}` });
  const inOrder = [...trials].sort((a, b) => marked.has(a.id) - marked.has(b.id) || goodness(scores, a, direction) - goodness(scores, b, direction)); // the best on top
  for (const [index, trial] of inOrder.entries()) {
    const points = axes.map((axis, index) => [x(index), y(axis, index === axes.length - 1 ? trial.score : choiceOf(trial, axis.name))]);
    const path = element('path', { class: marked.has(trial.id) ? 'run marked' : 'run', d: curve(points), ...(index >= inOrder.length - REACHED ? chooser(trial, open) : { onclick: () => open(trial) }) }, tip(trial, show(trial.score)));
    path.style.stroke = marked.get(trial.id) ?? shade(goodness(scores, trial, direction));
    svg.append(path);
  }
  axes.forEach((axis, index) => {
    svg.append(element('line', { class: 'axis', x1: x(index), x2: x(index), y1: top, y2: height - 20 }));
    svg.append(element('text', { x: x(index) + Math.max(0, index ? 0 : 3.2 * Math.min(24, axis.name.length) - 55), y: 14, 'text-anchor': 'middle', 'font-weight': 600 }, cut(axis.name, 24)));
    for (const value of axis.ticks) svg.append(element('text', { class: 'tick', x: x(index) + 6, y: y(axis, value) + 4 }, cut(show(value), 18)));
  });
  return element('figure', { class: 'whole-row' }, element('figcaption', {}, `Choices and ${outcome} `, element('span', { class: 'soft' }, 'the stronger, the better')), svg);
}

// A line through the points; where a trial has no such parameter the line has a gap.
const curve = points => points.map(([x, y], index) => {
  if (!Number.isFinite(y)) return '';
  const [px, py] = points[index - 1] ?? [NaN, NaN];
  if (!Number.isFinite(py)) return `M${(x - 4).toFixed(1)},${y.toFixed(1)}H${x.toFixed(1)}`;
  const middle = ((px + x) / 2).toFixed(1);
  return `C${middle},${py.toFixed(1)} ${middle},${y.toFixed(1)} ${x.toFixed(1)},${y.toFixed(1)}`;
}).join('');

function scatter(trials, name, { direction, marked, open, outcome }) {
  const [width, height] = [420, 220];
  const [horizontal, vertical] = [makeAxis(name, trials.map(trial => choiceOf(trial, name))), makeAxis(outcome, trials.map(trial => trial.score))];
  const x = value => 72 + horizontal.place(value) * (width - 104);
  const y = value => height - 34 - vertical.place(value) * (height - 54);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'group', 'aria-label': `${outcome} against ${name}` });
  svg.append(element('line', { class: 'axis', x1: 60, x2: width - 20, y1: height - 25, y2: height - 25 }), element('line', { class: 'axis', x1: 60, x2: 60, y1: 10, y2: height - 25 }));
  for (const value of horizontal.ticks) svg.append(element('text', { class: 'tick', x: x(value), y: height - 10, 'text-anchor': 'middle' }, cut(show(value), 12)));
  for (const value of vertical.ticks) svg.append(element('text', { class: 'tick', x: 54, y: y(value) + 4, 'text-anchor': 'end' }, show(value)));
  for (const [index, trial] of trials.entries()) {
    const value = choiceOf(trial, name);
    if (value === undefined) continue;
    const dot = element('circle', { class: marked.has(trial.id) ? 'run marked' : 'run', cx: x(value), cy: y(trial.score), r: marked.has(trial.id) ? 5 : 3.5, ...(index < REACHED ? chooser(trial, open) : { onclick: () => open(trial) }) },
      tip(trial, `${name} ${show(value)}, ${outcome} ${show(trial.score)}`));
    dot.style.fill = marked.get(trial.id) ?? shade(goodness(vertical, trial, direction));
    svg.append(dot);
  }
  return element('figure', {}, element('figcaption', { title: name }, element('span', {}, `${outcome === 'score' ? 'Score' : outcome} against ${name}`), horizontal.log ? element('span', { class: 'soft' }, ' logarithmic') : null), svg);
}

const REACHED = 200; // so many lines, the best ones, and dots are reached by the Tab key
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
    const between = present.every(Number.isInteger) ? Math.round(middle) : Number(middle.toPrecision(2));
    const ticks = known.length <= 4 && apart ? known : [low, between, high];
    return { name, log, place, ticks };
  }
  const known = [...new Set(present.map(String))].sort();
  return { name, place: value => value == null ? NaN : known.length === 1 ? 0.5 : known.indexOf(String(value)) / (known.length - 1), ticks: known };
}
