// Runs that only repeat each other, made one row: means and sample deviations of what they measured.

import { show } from './dom.js';

// Returns rows as of trials, those together that differ in nothing but `over`, a key of their configuration. Of a search
// they are the runs of one number: what was lost with its process is not what made up for it.
export function average(trials, over) {
  if (!over) return trials;
  const groups = new Map();
  for (const trial of trials) {
    const { [over]: repeated, ...rest } = trial.config;
    const key = Object.hasOwn(trial.config, over) ? JSON.stringify([trial.experiment, trial.number, Object.entries(rest).sort(([a], [b]) => a < b ? -1 : 1)]) : trial.id;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(trial);
  }
  return [...groups.values()].map(members => members.length > 1 ? joined(members, over) : members[0]);
}

// It has the identity of its oldest run, so that it stays chosen when others join it.
function joined(members, over) {
  const sorted = [...members].sort((a, b) => (a.created ?? 0) - (b.created ?? 0) || (a.name < b.name ? -1 : 1));
  const [oldest] = sorted;
  const { [over]: repeated, ...config } = oldest.config;
  const { [over]: chosen, ...hparams } = oldest.hparams;
  const keys = [...new Set(members.flatMap(trial => Object.keys(trial.metrics)))];
  const spreads = Object.fromEntries(keys.map(key => ['last ' + key, spread(members.map(trial => trial.metrics[key]))]));
  spreads.score = spread(members.map(trial => trial.score));
  const states = [...new Set(members.map(trial => trial.state))];
  return {
    ...oldest, members: sorted, config, hparams, spreads, keys,
    name: folderOf(sorted) ?? oldest.name,
    state: states.includes('running') ? 'running' : states.length === 1 ? states[0] : 'mixed',
    score: spreads.score?.mean ?? null,
    metrics: Object.fromEntries(keys.map(key => [key, told(spreads['last ' + key]?.mean ?? null)])),
    updated: members.map(trial => trial.updated).join(), step: Math.min(...members.map(trial => trial.step ?? 0)),
    tags: [...new Set(members.flatMap(trial => trial.tags))], note: '', problems: members.flatMap(trial => trial.problems),
  };
}

// The folder that holds all of them and nothing between, as of a search's runs of one configuration.
function folderOf(members) {
  const folders = new Set(members.map(trial => trial.name.slice(0, Math.max(0, trial.name.lastIndexOf('/')))));
  const [folder] = folders;
  return folders.size === 1 && folder && members[0].experiment ? folder : null;
}

// What is not finite is told as text.
const TEXTS = new Map([['nan', NaN], ['inf', Infinity], ['-inf', -Infinity]]);
const told = number => [...TEXTS].find(([, one]) => Object.is(one, number))?.[0] ?? number;

// Mean and deviation; a run that went astray is one of them.
export function spread(values) {
  const numbers = values.map(value => TEXTS.get(value) ?? value).filter(value => typeof value === 'number');
  if (!numbers.length) return null;
  const mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const deviation = numbers.length < 2 ? 0 : Math.sqrt(numbers.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (numbers.length - 1));
  return { mean, deviation, n: numbers.length };
}

// The mean to the digits that its deviation leaves certain, as in report/table.py.
export function tellSpread({ mean, deviation }) {
  if (!(deviation > 0) || !Number.isFinite(mean)) return show(told(mean));
  const [first, power] = deviation.toExponential(1).split('e');
  const further = first[0] === '1' ? 1 : 0;
  const digits = Math.max(0, further - Number(power));
  if (digits > 6 || Math.max(Math.abs(mean), deviation) >= 1e7) return `${mean.toExponential(3)} ± ${deviation.toExponential(further)}`;
  return `${mean.toFixed(digits)} ± ${deviation.toFixed(digits)}`;
}

const MOST = 1200; // places of a mean curve

// Returns the mean of curves, and how far one deviation reaches to both sides; between its points each is a line, and
// outside of them it has no part.
export function meanCurve(curves) {
  const clean = curves.map(({ x, y }) => {
    const kept = Array.from(x.keys()).filter(index => Number.isFinite(y[index]) && Number.isFinite(x[index]));
    return { x: kept.map(index => x[index]), y: kept.map(index => y[index]) };
  }).filter(curve => curve.x.length);
  const every = [...new Set(clean.flatMap(curve => curve.x))].sort((a, b) => a - b);
  const step = Math.ceil(every.length / MOST) || 1;
  const grid = every.filter((_, index) => index % step === 0 || index === every.length - 1);
  const columns = clean.map(curve => along(curve, grid));
  const spreads = grid.map((_, index) => spread(columns.map(column => column[index])));
  return { x: grid, y: spreads.map(one => one.mean), low: spreads.map(one => one.mean - one.deviation), high: spreads.map(one => one.mean + one.deviation) };
}

function along({ x, y }, grid) {
  let at = 0;
  return grid.map(place => {
    while (at < x.length && x[at] < place) at++;
    if (at === x.length || (at === 0 && x[0] > place)) return null;
    return x[at] === place ? y[at] : y[at - 1] + (y[at] - y[at - 1]) * (place - x[at - 1]) / (x[at] - x[at - 1]);
  });
}
