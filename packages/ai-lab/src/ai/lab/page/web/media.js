// What trials keep besides numbers, by name: figures and images, histograms, tables, texts.

import { getDetails, getJson, getText, pictureAt } from './api.js';
import { element, empty, show, swatch } from './dom.js';

let at = Infinity;

export async function mediaView(page, anew) {
  const details = (await getDetails(page.trials)).filter(detail => Object.keys(detail.media).length);
  if (!page.still()) return;
  const steps = [...new Set(details.flatMap(detail => Object.values(detail.media).flat().map(([step]) => step)))].sort((a, b) => a - b);
  if (!steps.length) { page.show(empty('Nothing was kept: trial.keep(step, name, value) keeps figures, images, histograms, tables and texts.')); return; }
  const state = JSON.stringify([page.trials.map(trial => trial.id), steps]);
  if (!anew && page.view.dataset.media === state) return;
  page.view.dataset.media = state;
  const place = Math.max(0, steps.findLastIndex(step => step <= at));
  const slider = element('input', { type: 'range', min: 0, max: steps.length - 1, value: place, 'aria-label': 'Step' });
  const told = element('output');
  const body = element('div', {});
  const names = [...new Set(details.flatMap(detail => Object.keys(detail.media)))].sort();
  let turning = 0;
  const turn = async () => {
    const mine = ++turning;
    const wanted = steps[slider.value];
    at = Number(slider.value) === steps.length - 1 ? Infinity : wanted;
    told.textContent = `step ${wanted} (${Number(slider.value) + 1} of ${steps.length})`;
    const blocks = await Promise.all(names.map(name => block(page, details, name, wanted)));
    if (mine === turning) body.replaceChildren(...blocks);
  };
  slider.addEventListener('input', turn);
  page.show(element('div', { class: 'controls wide' }, element('label', {}, 'Step ', slider), told), body);
  await turn();
}

async function block(page, details, name, wanted) {
  const figures = details.flatMap(detail => {
    const kept = (detail.media[name] ?? []).filter(([step]) => step <= wanted).at(-1);
    return kept ? [figure(page, detail, name, ...kept)] : [];
  });
  return element('section', { 'aria-label': name }, element('h2', {}, name), element('div', { class: 'charts samples' }, ...await Promise.all(figures)));
}

async function figure(page, detail, name, step, suffix) {
  const { label, color, dash } = page.look(detail.id);
  const path = `api/trial/${detail.id}/media/${step}/${encodeURIComponent(name)}`;
  const shown = suffix === '.png' ? element('img', { alt: `${name} of ${label} at step ${step}`, src: pictureAt(path) })
    : suffix === '.txt' ? element('pre', { class: 'log', tabindex: 0 }, await getText(path)) : drawn(await getJson(path), `${name} of ${label}`);
  return element('figure', {}, element('figcaption', {}, swatch(color, dash), label, ' ', element('span', { class: 'soft' }, `step ${step}`)), shown);
}

const drawn = (value, title) => value.kind === 'histogram' ? histogram(value, title) : table(value);

function histogram({ edges, counts, not_finite: apart }, title) {
  const [width, height] = [420, 190];
  const most = Math.max(1, ...counts);
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': `Histogram ${title}` });
  counts.forEach((count, index) => {
    const bar = count / most * (height - 40);
    const x = 12 + index * (width - 24) / counts.length;
    svg.append(element('path', { class: 'bar', d: `M${x},${height - 24}v${-bar}h${(width - 24) / counts.length - 1}v${bar}z` }, element('title', {}, `${show(edges[index])} to ${show(edges[index + 1])}: ${count}`)));
  });
  svg.append(element('line', { class: 'axis', x1: 12, x2: width - 12, y1: height - 24, y2: height - 24 }));
  if (counts.length) for (const [x, value, anchor] of [[12, edges[0], 'start'], [width - 12, edges.at(-1), 'end']]) svg.append(element('text', { class: 'tick', x, y: height - 8, 'text-anchor': anchor }, show(value)));
  return element('div', {}, svg, apart ? element('span', { class: 'soft' }, `${apart} values are not finite`) : null);
}

function table({ columns, rows }) {
  const most = 500;
  return element('div', { class: 'facts', tabindex: 0 }, element('table', {}, element('thead', {}, element('tr', {}, ...columns.map(name => element('th', {}, name)))),
    element('tbody', {}, ...rows.slice(0, most).map(row => element('tr', {}, ...row.map(value => element('td', { class: typeof value === 'number' ? 'number' : '' }, show(value))))))),
  rows.length > most ? element('p', { class: 'soft' }, `and ${rows.length - most} more rows`) : null);
}
