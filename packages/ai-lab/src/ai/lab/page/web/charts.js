// Curves of several trials over one another, by uPlot: gaps stay gaps, a lone point is a dot, a drag zooms.

import { saveCsv, savePng } from './download.js';
import { tellSpread } from './groups.js';
import { element, lasting, show, swatch } from './dom.js';

const HEIGHT = 230;
const STEPS = Array.from({ length: 600 }, (_, index) => Number(`1e${index - 300}`)); // also of what has diverged
const resized = new ResizeObserver(entries => {
  for (const { target } of entries) {
    const width = Math.floor(target.clientWidth);
    if (target.plot && width > 0 && width !== target.plot.width) target.plot.setSize({ width, height: HEIGHT });
  }
});

// Makes an empty chart; `onZoom` is called with [from, to], or null for all. `rows` of it are asked for by whom saves it.
export function makeChart(title, onZoom) {
  const place = element('div', { class: 'plot', ondblclick: () => onZoom(null) });
  const tip = element('div', { class: 'tip', hidden: true });
  const whole = element('button', { type: 'button', class: 'whole', hidden: true, onclick: () => onZoom(null) }, 'whole range');
  const note = element('span', { class: 'soft' });
  const values = element('div', { class: 'whole-row' });
  const chart = { place, tip, whole, note, values, onZoom, plot: null, curves: [], rows: null, marked: null };
  const csv = element('button', { type: 'button', title: 'Save the numbers as CSV', onclick: async () => saveCsv(title, await chart.rows()) }, 'CSV');
  const png = element('button', { type: 'button', title: 'Save the picture as PNG', onclick: () => savePng(title, chart.plot.ctx.canvas, chart.curves.filter(curve => !curve.faint)) }, 'PNG');
  chart.figure = element('figure', { 'data-key': title }, element('figcaption', { title }, element('span', {}, title), note, whole, element('span', { class: 'save' }, csv, png)), place, values, tip);
  resized.observe(place);
  return chart;
}

// Has one row's curves stand out; null for all alike.
export function emphasize(chart, id) {
  if (!chart.plot || chart.marked === id) return;
  chart.marked = id;
  chart.curves.forEach((curve, index) => { chart.plot.series[index + 1].alpha = id === null || curve.id === id ? 1 : 0.15; });
  chart.plot.redraw(false, false);
}

export function removeChart(chart) {
  resized.unobserve(chart.place);
  chart.plot?.destroy();
  chart.figure.remove();
}

// Draws [{id, label, color, dash, faint, x, y, low, high}, ...] anew; what lies between low and high is shaded.
export function drawChart(chart, curves, { log = false, clip = false, xLabel = 'step', zoom = null, unit = '', values = false } = {}) {
  const { place } = chart;
  const ink = getComputedStyle(document.body).color;
  const line = '#8883';
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: '11px system-ui', size: 34 };
  const clean = values => Array.from(values, value => Number.isFinite(value) && (!log || value > 0) ? value : null);
  const data = curves.map(({ x, y, low, high }) => low ? [x, clean(y), clean(low), clean(high)] : [x, clean(y)]);
  const seconds = xLabel === 'time';
  const whole = !seconds && data.every(([x]) => x.every(Number.isInteger)); // no tick at half a step
  const options = {
    mode: 2, width: Math.max(200, Math.floor(place.clientWidth) || 410), height: HEIGHT, legend: { show: false }, padding: [8, 18, 0, 0],
    cursor: { points: { show: false }, drag: { x: true, y: false, setScale: false } },
    scales: {
      x: { time: false, range: () => zoom ?? (seconds ? fromStart : whole => whole)(spread(data.map(one => one[0]), false, 0)) },
      y: { distr: log ? 3 : 1, range: () => unit === 'percent' ? [0, Math.max(100, spread(data.map(one => one[1]), false, 0)[1])] : spread(data.flatMap(one => one.slice(1)).map(column => clip ? inliers(column) : column), log, 0.04) },
    },
    axes: [
      { ...axis, label: xLabel, labelSize: 16, labelFont: '11px system-ui', splits: (u, index, low, high) => even(low, high).filter(tick => !whole || Number.isInteger(tick)), values: (u, ticks) => ticks.map(tick => tick == null ? '' : seconds ? lasting(tick) : short(tick)) },
      { ...axis, size: (u, ticks) => Math.max(60, 20 + 6.2 * Math.max(0, ...(ticks ?? []).map(tick => tick.length))), incrs: STEPS, splits: (u, index, low, high) => log ? decades(low, high) : even(low, high), filter: (u, ticks) => ticks, values: (u, ticks) => ticks.map(tick => tick == null ? '' : amount(tick, unit)) },
    ],
    series: [{}, ...curves.map(({ label, color, dash, faint }) => ({ label, stroke: faint ? color + '44' : color, fill: color + '2e', width: 2, dash, facets: [{ scale: 'x', auto: true }, { scale: 'y', auto: true }], paths, points: { show: false } }))],
    hooks: {
      setCursor: [u => tell(chart, curves, data, u, xLabel, unit)],
      setSelect: [u => { if (u.select.width > 4) chart.onZoom([u.posToVal(u.select.left, 'x'), u.posToVal(u.select.left + u.select.width, 'x')]); }],
    },
  };
  chart.plot?.destroy();
  Object.assign(chart, { curves, marked: null });
  chart.whole.hidden = !zoom;
  chart.values.replaceChildren(...(values ? [cameTo(curves)] : []));
  const broken = curves.some(({ faint, y }) => !faint && y.some(value => !Number.isFinite(value)));
  chart.note.textContent = data.every(([, y]) => y.every(value => value == null)) ? 'nothing to draw' : broken ? 'NaN or infinite in places' : '';
  chart.plot = place.plot = new uPlot(options, [null, ...data], place);
}

// What each curve came to, as recorded, in the range that is drawn.
function cameTo(curves) {
  const recorded = curves.filter(curve => curve.faint || !curves.some(other => other.faint && other.id === curve.id));
  const rows = recorded.map(({ label, color, dash, y }) => {
    const [known, last] = [y.filter(value => !Number.isNaN(value)), y.at(-1)];
    const extremes = known.length ? [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))] : ['', ''];
    return element('tr', {}, element('td', {}, swatch(color, dash), label), ...[last, ...extremes].map(value => element('td', {}, show(value))));
  });
  return element('table', { class: 'values' }, element('tr', {}, ...['curve', 'last', 'smallest', 'largest'].map(name => element('th', {}, name))), ...rows);
}

function paths(u, index) {
  const [xs, ys, lows, highs] = u.data[index];
  const { x, y } = u.scales;
  const { left, top, width, height } = u.bbox;
  const logs = y.distr === 3;
  const [low, high] = logs ? [Math.log10(y.min), Math.log10(y.max)] : [y.min, y.max];
  const toX = value => left + (value - x.min) / (x.max - x.min) * width;
  const toY = value => top + (high - (logs ? Math.log10(value) : value)) / (high - low) * height;
  const stroke = new Path2D();
  const radius = 2.5 * devicePixelRatio;
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] == null) continue;
    const [px, py] = [toX(xs[i]), toY(ys[i])];
    const [joined, joins] = [i > 0 && ys[i - 1] != null, i + 1 < xs.length && ys[i + 1] != null];
    if (joined) stroke.lineTo(px, py);
    else if (joins) stroke.moveTo(px, py);
    else { stroke.moveTo(px + radius, py); stroke.arc(px, py, radius, 0, 2 * Math.PI); }
  }
  const fill = lows ? new Path2D() : null;
  const inside = lows ? Array.from(xs.keys()).filter(i => lows[i] != null && highs[i] != null) : [];
  inside.forEach(i => fill.lineTo(toX(xs[i]), toY(highs[i])));
  inside.reverse().forEach(i => fill.lineTo(toX(xs[i]), toY(lows[i])));
  return { stroke, fill, clip: null, band: null, gaps: null, flags: 1 };
}

// A readout beside the pointer: each trial's value there, the largest first.
function tell(chart, curves, data, u, xLabel, unit) {
  const { tip, figure, place } = chart;
  tip.hidden = !(u.cursor.left >= 0) || !curves.length;
  if (tip.hidden) { emphasize(chart, null); return; }
  const at = u.posToVal(u.cursor.left, 'x');
  const values = curves.flatMap(({ id, label, color, dash, faint, low, high }, index) => {
    if (faint) return [];
    const [x, y] = data[index];
    const near = nearest(x, at);
    return y[near] == null || Math.abs(x[near] - at) > (u.scales.x.max - u.scales.x.min) / 20 ? [] : [{ id, label, color, dash, x: x[near], y: y[near], deviation: low ? (high[near] - low[near]) / 2 : 0 }];
  }).sort((a, b) => b.y - a.y);
  if (!values.length) { tip.hidden = true; emphasize(chart, null); return; }
  const distance = one => Math.abs(u.valToPos(one.y, 'y') - u.cursor.top);
  const nearby = values.reduce((a, b) => distance(b) < distance(a) ? b : a);
  emphasize(chart, curves.length > 1 && distance(nearby) < 30 ? nearby.id : null);
  const more = values.length > 12 ? element('div', { class: 'soft' }, `and ${values.length - 12} more`) : null;
  tip.replaceChildren(element('div', { class: 'soft' }, xLabel === 'time' ? lasting(at) : `${xLabel} ${show(values[0].x)}`),
    ...values.slice(0, 12).map(({ id, label, color, dash, y, deviation }) => element('div', { class: id === chart.marked ? 'near' : '' }, swatch(color, dash), element('b', {}, unit ? amount(y, unit) : deviation ? tellSpread({ mean: y, deviation }) : show(y)), ' ', label)), ...(more ? [more] : []));
  const pointer = place.offsetLeft + u.over.offsetLeft + u.cursor.left;
  const room = figure.clientWidth - tip.offsetWidth;
  tip.style.left = `${pointer + 14 <= room ? pointer + 14 : pointer - 14 >= tip.offsetWidth ? pointer - 14 - tip.offsetWidth : Math.max(0, room)}px`;
}

function nearest(x, at) {
  let [low, high] = [0, x.length - 1];
  while (low < high) { const middle = (low + high) >> 1; if (x[middle] < at) low = middle + 1; else high = middle; }
  return low > 0 && at - x[low - 1] < x[low] - at ? low - 1 : low;
}

// Without what lies far out: the range that the middle 96 of 100 values have.
function inliers(column) {
  const sorted = Float64Array.from(column.filter(value => value != null)).sort();
  if (sorted.length < 20) return sorted;
  const cut = Math.ceil(sorted.length / 50);
  return sorted.subarray(cut, sorted.length - cut);
}

function spread(columns, log, room) {
  let [low, high] = [Infinity, -Infinity];
  for (const column of columns) for (const value of column) if (value != null) { if (value < low) low = value; if (value > high) high = value; }
  if (!(low <= high)) return log ? [0.1, 1] : [0, 1];
  if (log) return [low / 1.1, high * 1.1];
  if (low === high) { const pad = Math.abs(high) * 0.05 || 0.5; return [low - pad, high + pad]; }
  const pad = (high - low) * room;
  return [low - pad, high + pad];
}

// Ticks at even steps of 1, 2 or 5 times a power of ten.
function even(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find(part => part * power >= rough) ?? 10);
  const first = Math.ceil(low / step);
  const ticks = Array.from({ length: 8 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
  return ticks.filter(tick => tick >= low && tick <= high);
}

// Ticks of a logarithmic axis: decades, parts of them where there are few, even steps within one.
function decades(low, high) {
  const ticks = [];
  if (high / low < 10) return even(low, high);
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const each = Math.max(1, Math.ceil((last - first) / 6));
  for (let power = first; power <= last; power += each) {
    for (const part of high / low < 1000 ? [1, 2, 5] : [1]) {
      const tick = Number(`${part}e${power}`);
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

const fromStart = ([low, high]) => [Math.max(-high / 50, low), high]; // a run's time begins at 0, also that of a lone point
const SIZES = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']];
const short = value => {
  if (Math.abs(value) >= 1e15) return show(value);
  const [size, name] = SIZES.find(([size]) => Math.abs(value) >= size * (size === 1e3 ? 10 : 1)) ?? [1, ''];
  return show(Number((value / size).toPrecision(6))) + name;
};
const amount = (value, unit) => unit === 'bytes' ? short(value).replace(/[kMGT]?$/, name => ` ${name}B`) : unit === 'percent' ? `${show(value)} %` : short(value);
