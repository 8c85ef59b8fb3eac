// What trials keep besides numbers, by name: figures and images, sounds, videos, histograms, tables, matrices, texts.

import { getDetails, getJson, getText, pictureAt } from './api.js';
import { colorOf, dashOf, element, empty, show, swatch } from './dom.js';
import { stepChoice } from './steps.js';

export async function mediaView(page, anew) {
  const details = (await getDetails(page.trials)).filter(detail => Object.keys(detail.media).length);
  if (!page.still()) return;
  const steps = [...new Set(details.flatMap(detail => Object.values(detail.media).flat().map(([step]) => step)))].sort((a, b) => a - b);
  if (!steps.length) { page.show(empty('Nothing was kept: trial.keep(step, name, value) keeps figures, images, sounds, videos, histograms, tables and texts.')); return; }
  const state = JSON.stringify([page.trials.map(trial => trial.id), steps]);
  if (!anew && page.view.dataset.media === state) return;
  page.view.dataset.media = state;
  const body = element('div', {});
  const names = [...new Set(details.flatMap(detail => Object.keys(detail.media)))].sort();
  let turning = 0;
  const { controls, begin } = stepChoice(steps, async wanted => {
    const mine = ++turning;
    const blocks = await Promise.all(names.map(name => block(page, details, name, wanted)));
    if (mine === turning) body.replaceChildren(...blocks);
  });
  page.show(controls, body);
  await begin();
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
  const said = `${name} of ${label} at step ${step}`;
  const draw = async () => IMAGES.has(suffix) ? element('img', { alt: said, src: pictureAt(path) })
    : PLAYED[suffix] ? element(PLAYED[suffix], { controls: true, preload: 'metadata', 'aria-label': said, src: pictureAt(path) })
    : suffix === '.txt' ? text(await getText(path)) : drawn(await getJson(path), `${name} of ${label}`);
  const shown = await draw().catch(error => element('p', { class: 'problem' }, `cannot be shown: ${error.message}`)); // the others are
  return element('figure', {}, element('figcaption', {}, swatch(color, dash), label, ' ', element('span', { class: 'soft' }, `step ${step}`)), shown);
}

const IMAGES = new Set(['.png', '.jpg', '.gif', '.webp']);
const PLAYED = { '.wav': 'audio', '.mp3': 'audio', '.ogg': 'audio', '.flac': 'audio', '.mp4': 'video', '.webm': 'video' };

const DRAWN = { histogram, curves, confusion, table };
const text = content => element('pre', { class: 'log', tabindex: 0 }, content);
const drawn = (value, title) => Object.hasOwn(DRAWN, value?.kind) ? DRAWN[value.kind](value, title) : text(JSON.stringify(value, null, 1)); // of the user's own

// Rows are what is true, columns what it was taken for; a cell is the stronger, the more of its row it has.
function confusion({ names, counts }, title) {
  const rows = counts.map((row, truth) => {
    const sum = row.reduce((a, b) => a + b, 0);
    return element('tr', {}, element('th', { scope: 'row' }, names[truth]), ...row.map((count, taken) => {
      const cell = element('td', { class: 'number', title: `${names[truth]} taken for ${names[taken]}: ${count} of ${sum}` }, count || '');
      const share = sum ? count / sum : 0;
      cell.style.background = `color-mix(in srgb, ${truth === taken ? 'var(--accent)' : 'var(--bad)'} ${Math.round(45 * share)}%, transparent)`;
      return cell;
    }));
  });
  const right = counts.reduce((sum, row, index) => sum + row[index], 0);
  const all = counts.flat().reduce((a, b) => a + b, 0);
  return element('div', { class: 'facts matrix' + (names.every(name => name.length < 4) ? '' : ' upright'), tabindex: 0, role: 'region', 'aria-label': title }, element('table', {}, element('thead', {}, element('tr', {}, element('th', {}, 'true ↓', element('br', {}), 'taken for →'), ...names.map(name => element('th', { scope: 'col' }, name)))), element('tbody', {}, ...rows)),
    element('p', { class: 'soft' }, `${right} of ${all} right${all ? `, ${show(100 * right / all)} %` : ''}`));
}

// Curves in the unit square, such as precision against recall.
function curves({ x: horizontal, y: vertical, curves }, title) {
  const [width, height, left, bottom] = [420, 260, 44, 34];
  const [px, py] = [value => left + value * (width - left - 12), value => height - bottom - value * (height - bottom - 12)];
  const svg = element('svg', { viewBox: `0 0 ${width} ${height}`, width, role: 'img', 'aria-label': `${vertical} against ${horizontal} ${title}` });
  for (const tick of [0, 0.5, 1]) svg.append(element('line', { class: 'axis faint', x1: px(0), x2: px(1), y1: py(tick), y2: py(tick) }),
    element('text', { class: 'tick', x: left - 6, y: py(tick) + 4, 'text-anchor': 'end' }, tick), element('text', { class: 'tick', x: px(tick), y: height - 18, 'text-anchor': 'middle' }, tick));
  svg.append(element('text', { class: 'tick', x: px(0.5), y: height - 4, 'text-anchor': 'middle' }, horizontal), element('text', { class: 'tick', x: left, y: 9 }, vertical));
  const named = curves.map(({ name, x, y, area }, index) => {
    const path = element('path', { class: 'run', d: x.map((value, place) => `${place ? 'L' : 'M'}${px(value).toFixed(1)},${py(y[place]).toFixed(1)}`).join(''), 'stroke-dasharray': dashOf(index).join(' ') });
    path.style.stroke = colorOf(index);
    svg.append(path);
    return element('span', {}, swatch(colorOf(index), dashOf(index)), `${name} ${area == null ? 'none are positive' : show(Number(area.toPrecision(3)))}`);
  });
  return element('div', {}, svg, element('div', { class: 'legend' }, ...named));
}

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
  return element('div', { class: 'facts', tabindex: 0 }, element('table', {}, element('thead', {}, element('tr', {}, ...columns.map((name, index) => element('th', { scope: 'col', class: typeof rows[0]?.[index] === 'number' ? 'number' : '' }, name)))),
    element('tbody', {}, ...rows.slice(0, most).map(row => element('tr', {}, ...row.map(value => element('td', { class: typeof value === 'number' ? 'number' : '' }, show(value))))))),
  rows.length > most ? element('p', { class: 'soft' }, `and ${rows.length - most} more rows`) : null);
}
