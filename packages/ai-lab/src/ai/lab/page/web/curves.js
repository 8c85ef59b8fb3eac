// The views of curves: metrics, and what the machine did meanwhile.

import { getCurves, getDetails } from './api.js';
import { drawChart, makeChart, removeChart } from './charts.js';
import { byWeight, checkbox, choice, element, empty, memory, named, swatch } from './dom.js';

const choices = memory.get('choices', { smooth: 0, log: false, x: 'step' });
const zooms = new Map(); // by horizontal axis and metric
let charts = new Map();
let words = '';

export function forgetCharts() {
  charts.forEach(removeChart);
  charts = new Map();
}

export async function curvesView(page, anew) {
  const known = [...new Set(page.trials.flatMap(trial => trial.keys))].sort(byWeight);
  const keys = known.filter(key => words.split(/\s+/).every(word => key.toLowerCase().includes(word.toLowerCase())));
  if (anew) page.show(controls(page), legend(page), element('div', { class: 'charts' }));
  const place = page.view.querySelector('.charts');
  const ids = page.trials.map(trial => trial.id);
  const { x, smooth, log } = choices;
  const zoomed = keys.filter(key => zooms.has(`${x} ${key}`));
  const asked = [getCurves(ids, keys.filter(key => !zoomed.includes(key)), { x, smooth }), ...zoomed.map(key => getCurves(ids, [key], { x, smooth, zoom: zooms.get(`${x} ${key}`) }))];
  const curves = (await Promise.all(asked)).flat();
  if (!page.still()) return;
  if (!known.length) place.replaceChildren(empty('These trials have logged nothing yet.'));
  else if (!keys.length) place.replaceChildren(empty('No metric has such a name.'));
  else draw(page, place, keys, curves, key => ({ log, xLabel: x, zoom: zooms.get(`${x} ${key}`) }), (key, zoom) => {
    if (zoom) zooms.set(`${x} ${key}`, zoom); else zooms.delete(`${x} ${key}`);
    page.redraw(false);
  });
}

export async function systemView(page, anew) {
  const details = await getDetails(page.trials);
  const keys = [...new Set(details.flatMap(detail => detail.system))].sort();
  const curves = await getCurves(page.trials.map(trial => trial.id), keys, { x: 'time', file: 'system' });
  if (!page.still()) return;
  if (!keys.length) { page.show(empty('No system metrics were recorded: these runs were shorter than the interval, or told to record none.')); return; }
  if (anew || !page.view.querySelector('.charts')) page.show(legend(page), element('div', { class: 'charts' }));
  draw(page, page.view.querySelector('.charts'), keys, curves, key => ({ xLabel: 'time', unit: UNITS.find(unit => key.endsWith(unit) && key !== 'cpu_process_percent') ?? '' }), () => {});
}

const UNITS = ['bytes', 'percent'];

function draw(page, place, keys, curves, options, zoom) {
  const drawn = keys.filter(key => curves.some(curve => curve.key === key));
  for (const [key, chart] of charts) if (!drawn.includes(key)) { removeChart(chart); charts.delete(key); }
  place.querySelectorAll('.empty').forEach(one => one.remove());
  for (const key of drawn) {
    if (!charts.has(key)) charts.set(key, makeChart(key, range => zoom(key, range)));
    const chart = charts.get(key);
    chart.onZoom = range => zoom(key, range);
    place.append(chart.figure); // in this order
    const mine = curves.filter(curve => curve.key === key);
    const smoothed = mine.some(curve => curve.smooth);
    drawChart(chart, mine.map(curve => ({ ...page.look(curve.id), faint: smoothed && !curve.smooth, x: curve.x, y: curve.y })), options(key));
  }
}

function controls(page) {
  let waiting = 0;
  const change = (name, value) => { choices[name] = value; memory.set('choices', choices); page.redraw(false); };
  const told = element('output', {}, choices.smooth ? String(choices.smooth) : 'off');
  const slide = () => {
    told.textContent = Number(smooth.value) ? smooth.value : 'off';
    clearTimeout(waiting);
    waiting = setTimeout(() => change('smooth', Number(smooth.value)), 120);
  };
  const smooth = element('input', { type: 'range', min: 0, max: 0.99, step: 0.01, value: choices.smooth, 'aria-label': 'Smoothing', oninput: slide });
  const filter = element('input', { id: 'metrics', type: 'search', placeholder: 'Metrics', 'aria-label': 'Filter metrics', value: words, oninput: () => { words = filter.value; page.redraw(false); } });
  return element('div', { class: 'controls' }, element('label', {}, 'Smoothing ', smooth, ' ', told), checkbox('Logarithmic', choices.log, value => change('log', value)),
    choice('Over', [['step', 'step'], ['time', 'time']], choices.x, value => change('x', value)), filter, element('span', { class: 'soft' }, 'Drag over a chart to look closer.'));
}

export function legend(page) {
  return element('div', { class: 'legend' }, ...page.trials.map(trial => element('span', {}, swatch(page.look(trial.id).color, page.look(trial.id).dash), named(trial.name))));
}
