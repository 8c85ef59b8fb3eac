// Curves of several trials over one another, by uPlot.

import { element, show } from './dom.js';

// Draws [{label, color, x, y}, ...] into a figure, or into the one it drew before.
export function chart(figure, title, curves, { log = false, xLabel = 'step', smooth = 0 } = {}) {
  if (!figure) figure = element('figure', {}, element('figcaption', { title }, title), element('div'));
  const place = figure.lastChild;
  const ink = getComputedStyle(document.body).color;
  const axis = { stroke: ink, grid: { stroke: '#8883', width: 1 }, ticks: { stroke: '#8883', width: 1 }, font: '11px system-ui', size: 34 };
  const data = curves.map(({ x, y }) => {
    const shown = smoothed(y, smooth);
    return [x, Array.from(shown, value => Number.isFinite(value) && (!log || value > 0) ? value : null)];
  });
  const readout = { show: true, points: { size: 5 } };
  const options = {
    mode: 2, width: Math.max(200, place.clientWidth || 410), height: 230, cursor: { ...readout, drag: { x: true, y: false } }, legend: { show: false },
    scales: { x: { time: false, auto: true, range: (u, low, high) => spread(data.map(one => one[0]), false, low, high) },
      y: { auto: true, distr: log ? 3 : 1, range: () => spread(data.map(one => one[1]), log) } },
    axes: [{ ...axis, label: xLabel, labelSize: 16, labelFont: '11px system-ui' }, { ...axis, size: 58, values: (u, ticks) => ticks.map(tick => tick == null ? '' : show(tick)) }],
    series: [{}, ...curves.map(({ label, color, x }) => ({
      label, stroke: color, width: 1.5, facets: [{ scale: 'x', auto: true }, { scale: 'y', auto: true }],
      paths: uPlot.paths.linear(), points: { show: x.length < 3, size: 5 },
    }))],
    hooks: { setCursor: [u => tell(figure, title, curves, data, u)] },
  };
  figure.plot?.destroy();
  figure.plot = new uPlot(options, [null, ...data], place);
  return figure;
}

function tell(figure, title, curves, data, u) {
  const caption = figure.firstChild;
  if (u.cursor.left < 0) { caption.textContent = title; return; }
  const at = u.posToVal(u.cursor.left, 'x');
  const values = curves.map(({ label }, index) => {
    const [x, y] = data[index];
    let [low, high] = [0, x.length - 1];
    while (low < high) { const middle = (low + high) >> 1; if (x[middle] < at) low = middle + 1; else high = middle; }
    return `${label} ${show(y[low])}`;
  });
  caption.textContent = `${title} at ${show(Math.round(at))}: ${values.join(', ')}`;
}

function spread(columns, log, low = null, high = null) {
  if (low == null || high == null || !columns.length) { low = Infinity; high = -Infinity; }
  for (const column of columns) for (const value of column) if (value != null) { if (value < low) low = value; if (value > high) high = value; }
  if (!(low <= high)) return log ? [0.1, 1] : [0, 1];
  if (log) return [low / 1.1, high * 1.1];
  const pad = (high - low) * 0.04 || Math.abs(high) * 0.05 || 0.5;
  return [low - pad, high + pad];
}

// Exponential moving average, corrected for its start; gaps stay gaps.
function smoothed(values, weight) {
  if (!weight) return values;
  let [average, mass] = [0, 0];
  return values.map(value => {
    if (!Number.isFinite(value)) return value;
    average = average * weight + value * (1 - weight);
    mass = mass * weight + (1 - weight);
    return average / mass;
  });
}
