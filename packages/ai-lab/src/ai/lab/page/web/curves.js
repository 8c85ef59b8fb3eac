// The views of curves: metrics, and what the machine did meanwhile.

import * as address from './address.js';
import { Following, getCurves, getDetails } from './api.js';
import { drawChart, emphasize, makeChart, removeChart } from './charts.js';
import { byWeight, checkbox, choice, element, empty, named, swatch } from './dom.js';
import { meanCurve } from './groups.js';

const DEFAULTS = { smooth: 0, log: false, clip: false, values: false, x: 'step' };
const ALL = 10_000_000; // points of a saved curve
const choices = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, address.get(name, value)]));
const zooms = new Map(address.get('zoom', [])); // by horizontal axis and metric
const off = new Set(address.get('off', [])); // rows whose curves are hidden
const [metrics, system] = [new Following(), new Following()];
let charts = new Map();
let words = address.get('metrics', '');

export function forgetCharts() {
  charts.forEach(removeChart);
  charts = new Map();
}

export async function curvesView(page, anew) {
  const known = [...new Set(page.rows.flatMap(row => row.keys))].sort(byWeight);
  const keys = known.filter(key => words.split(/\s+/).every(word => key.toLowerCase().includes(word.toLowerCase())));
  if (choices.x.startsWith('by:') && !known.includes(choices.x.slice(3))) choices.x = 'step';
  if (anew) page.show(controls(page, known), legend(page, true), element('div', { class: 'charts' }));
  const place = page.view.querySelector('.charts');
  const ids = page.trials.map(trial => trial.id);
  const { x, smooth, log, clip, values } = choices;
  const zoomOf = key => zooms.get(`${x} ${key}`);
  const zoomed = keys.filter(zoomOf);
  const asked = [metrics.curves(ids, keys.filter(key => !zoomOf(key)), { x, smooth }), ...zoomed.map(key => getCurves(ids, [key], { x, smooth, zoom: zoomOf(key) }))];
  const curves = (await Promise.all(asked)).flat();
  if (!page.still()) return;
  if (!known.length) { place.replaceChildren(empty('These trials have logged nothing yet.')); return; }
  if (!keys.length) { place.replaceChildren(empty('No metric has such a name.')); return; }
  const xLabel = x.replace(/^by:/, '');
  draw(page, place, keys, curves, key => ({ log, clip, values, xLabel, zoom: zoomOf(key) ?? null }), key => allRows(page, key, { x }, xLabel), (key, zoom) => {
    if (zoom) zooms.set(`${x} ${key}`, zoom); else zooms.delete(`${x} ${key}`);
    address.set('zoom', [...zooms], []);
    page.redraw(false);
  });
}

export async function systemView(page, anew) {
  const details = await getDetails(page.trials);
  const keys = [...new Set(details.flatMap(detail => detail.system))].sort();
  const curves = await system.curves(page.trials.map(trial => trial.id), keys, { x: 'time', file: 'system' });
  if (!page.still()) return;
  if (!keys.length) { page.show(empty('No system metrics were recorded: these runs were shorter than the interval, or told to record none.')); return; }
  if (anew || !page.view.querySelector('.charts')) page.show(legend(page, true), element('div', { class: 'charts' }));
  draw(page, page.view.querySelector('.charts'), keys, curves, key => ({ xLabel: 'time', unit: UNITS.find(unit => key.endsWith(unit)) ?? '' }),
    key => allRows(page, key, { x: 'time', file: 'system' }, 'time'), () => {});
}

const UNITS = ['bytes', 'percent'];

function draw(page, place, keys, curves, options, rows, zoom) {
  const drawn = keys.filter(key => curves.some(curve => curve.key === key));
  for (const [key, chart] of charts) if (!drawn.includes(key)) { removeChart(chart); charts.delete(key); }
  place.querySelectorAll('.empty').forEach(one => one.remove());
  for (const key of drawn) {
    if (!charts.has(key)) charts.set(key, makeChart(key, range => zoom(key, range)));
    const chart = charts.get(key);
    chart.onZoom = range => zoom(key, range);
    chart.rows = () => rows(key);
    place.append(chart.figure); // in this order
    drawChart(chart, page.rows.filter(row => !off.has(row.id)).flatMap(row => ofRow(page, row, curves.filter(curve => curve.key === key))), options(key));
  }
}

// A run's curve, faint below the smoothed one; of a row of several their mean.
function ofRow(page, row, curves) {
  const ids = new Set((row.members ?? [row]).map(trial => trial.id));
  const mine = curves.filter(curve => ids.has(curve.id));
  const smoothed = mine.some(curve => curve.smooth);
  const look = { ...page.look(row.id), id: row.id, label: row.name };
  if (!row.members) return mine.map(curve => ({ ...look, faint: smoothed && !curve.smooth, x: curve.x, y: curve.y }));
  const averaged = mine.filter(curve => curve.smooth === smoothed);
  return averaged.length ? [{ ...look, ...meanCurve(averaged) }] : [];
}

async function allRows(page, key, how, xLabel) {
  const curves = [];
  for (const { id } of page.trials) curves.push(...await getCurves([id], [key], { ...how, points: ALL })); // one at a time: they may be long
  const names = new Map(page.trials.map(trial => [trial.id, trial.name]));
  return [['trial', xLabel, key], ...curves.flatMap(({ id, x, y }) => Array.from(x, (place, index) => [names.get(id), place, y[index]]))];
}

function controls(page, known) {
  let waiting = 0;
  const change = (name, value) => { choices[name] = value; address.set(name, value, DEFAULTS[name], true); page.redraw(false); };
  const told = element('output', {}, choices.smooth ? String(choices.smooth) : 'off');
  const slide = () => {
    told.textContent = Number(smooth.value) ? smooth.value : 'off';
    clearTimeout(waiting);
    waiting = setTimeout(() => change('smooth', Number(smooth.value)), 120);
  };
  const smooth = element('input', { type: 'range', min: 0, max: 0.99, step: 0.01, value: choices.smooth, 'aria-label': 'Smoothing', oninput: slide });
  const filter = element('input', { id: 'metrics', type: 'search', placeholder: 'Metrics', 'aria-label': 'Filter metrics', value: words, oninput: () => { words = filter.value; address.set('metrics', words, ''); page.redraw(false); } });
  const axes = [['step', 'step'], ['time', 'time'], ...known.map(key => ['by:' + key, key])];
  return element('div', { class: 'controls' }, element('label', {}, 'Smoothing ', smooth, ' ', told), checkbox('Logarithmic', choices.log, value => change('log', value)),
    checkbox('Without outliers', choices.clip, value => change('clip', value)), checkbox('Values', choices.values, value => change('values', value)), choice('Over', axes, choices.x, value => change('x', value)), filter, element('span', { class: 'soft' }, 'Drag over a chart to look closer.'));
}

// What the colours mean; a press on a name hides its curves, a pointer on it has them stand out.
export function legend(page, hides = false) {
  const all = id => charts.forEach(chart => emphasize(chart, id));
  return element('div', { class: 'legend' }, ...page.rows.map(row => {
    const parts = [swatch(page.look(row.id).color, page.look(row.id).dash), named(row.name), row.members ? element('span', { class: 'soft' }, ` ×${row.members.length}`) : null];
    if (!hides) return element('span', {}, ...parts);
    const button = element('button', {
      type: 'button', 'aria-pressed': String(!off.has(row.id)), title: 'Show or hide these curves', onmouseenter: () => all(row.id), onmouseleave: () => all(null), onfocus: () => all(row.id), onblur: () => all(null),
      onclick: () => {
        if (!off.delete(row.id)) off.add(row.id);
        button.setAttribute('aria-pressed', String(!off.has(row.id)));
        address.set('off', [...off], []);
        page.redraw(false);
      },
    }, ...parts);
    return button;
  }));
}
