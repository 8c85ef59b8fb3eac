// A search's trials: parallel coordinates, and the score against each hyper-parameter.

import { element, show } from './dom.js';

export function searchView(trials) {
  const scored = trials.filter(trial => typeof trial.score === 'number' && Object.keys(trial.hparams).length);
  if (!scored.length) return [element('p', { class: 'empty' }, 'No trials with hyper-parameters and a score here: run an ai.Experiment, or clear the filter.')];
  const names = [...new Set(scored.flatMap(trial => Object.keys(trial.hparams)))];
  return [parallel(scored, names), element('div', { class: 'charts' }, ...names.map(name => scatter(scored, name)))];
}

function parallel(trials, names) {
  const [width, height, top] = [Math.max(600, names.length * 170), 300, 34];
  const axes = [...names.map(name => makeAxis(name, trials.map(trial => trial.hparams[name]))), makeAxis('score', trials.map(trial => trial.score))];
  const x = index => 60 + index * (width - 120) / (axes.length - 1);
  const y = (axis, value) => height - 20 - axis.place(value) * (height - 20 - top);
  const scoreAxis = axes.at(-1);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': 'Parallel coordinates of hyper-parameters and score' });
  for (const trial of trials) {
    const points = axes.map((axis, index) => [x(index), y(axis, index === axes.length - 1 ? trial.score : trial.hparams[axis.name])]).filter(point => Number.isFinite(point[1]));
    const path = element('path', { class: 'run', d: 'M' + points.map(point => point.map(one => one.toFixed(1)).join(',')).join('L'), stroke: shade(scoreAxis.place(trial.score)) });
    path.append(element('title', {}, `${trial.name}: ${show(trial.score)}`));
    svg.append(path);
  }
  axes.forEach((axis, index) => {
    svg.append(element('line', { class: 'axis', x1: x(index), x2: x(index), y1: top, y2: height - 20 }));
    svg.append(element('text', { x: x(index), y: 14, 'text-anchor': 'middle', 'font-weight': 600 }, axis.name.slice(0, 24)));
    for (const value of axis.ticks) svg.append(element('text', { x: x(index) + 5, y: y(axis, value) + 4 }, show(value).slice(0, 18)));
  });
  return element('figure', {}, element('figcaption', {}, `Hyper-parameters and score of ${trials.length} trials`), svg);
}

function scatter(trials, name) {
  const [width, height] = [420, 220];
  const [horizontal, vertical] = [makeAxis(name, trials.map(trial => trial.hparams[name])), makeAxis('score', trials.map(trial => trial.score))];
  const x = value => 60 + horizontal.place(value) * (width - 90);
  const y = value => height - 30 - vertical.place(value) * (height - 50);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': `Score against ${name}` });
  svg.append(element('line', { class: 'axis', x1: 55, x2: width - 20, y1: height - 25, y2: height - 25 }), element('line', { class: 'axis', x1: 55, x2: 55, y1: 10, y2: height - 25 }));
  for (const value of horizontal.ticks) svg.append(element('text', { x: x(value), y: height - 10, 'text-anchor': 'middle' }, show(value).slice(0, 12)));
  for (const value of vertical.ticks) svg.append(element('text', { x: 50, y: y(value) + 4, 'text-anchor': 'end' }, show(value)));
  for (const trial of trials) {
    if (trial.hparams[name] == null) continue;
    const dot = element('circle', { cx: x(trial.hparams[name]), cy: y(trial.score), r: 3.5, fill: shade(vertical.place(trial.score)) });
    dot.append(element('title', {}, `${trial.name}: ${name} ${show(trial.hparams[name])}, score ${show(trial.score)}`));
    svg.append(dot);
  }
  return element('figure', {}, element('figcaption', {}, `score against ${name}`), svg);
}

// An axis from 0 to 1: numbers in order of size (by decades where they span more than 50), other values side by side.
function makeAxis(name, values) {
  const present = values.filter(value => value != null);
  if (present.every(value => typeof value === 'number')) {
    const [low, high] = [Math.min(...present), Math.max(...present)];
    const log = low > 0 && high / low > 50;
    const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const middle = log ? Math.exp((a + b) / 2) : (a + b) / 2;
    return { name, place: value => value == null ? NaN : b === a ? 0.5 : ((log ? Math.log(value) : value) - a) / (b - a), ticks: low === high ? [low] : [low, middle, high] };
  }
  const known = [...new Set(present.map(String))].sort();
  return { name, place: value => value == null ? NaN : known.length === 1 ? 0.5 : known.indexOf(String(value)) / (known.length - 1), ticks: known };
}

const shade = part => `hsl(${Math.round(250 - 200 * part)} 65% 50%)`;
