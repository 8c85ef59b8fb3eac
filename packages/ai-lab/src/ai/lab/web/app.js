// The page: a table of trials above, views of the selected ones below. Asks the server once a second what changed.

import { getCurves, getJson, getText } from './api.js';
import { chart } from './charts.js';
import { colorOf, element, memory, show } from './dom.js';
import { searchView } from './search.js';
import { Table } from './table.js';

const POLL_MS = 1000;
const view = document.querySelector('#view');
const table = new Table(() => draw(true));
const choices = memory.get('choices', { smooth: 0, log: false, x: 'step' });
const views = { Curves: curvesView, Samples: samplesView, Config: configView, Code: codeView, System: systemView, Search: drawSearch, Log: logView };
let current = 'Curves';
let drawing = 0;
let figures = new Map();

const selectedTrials = () => table.selected.map(id => table.trials.find(trial => trial.id === id)).filter(Boolean);
const labelled = (id, key) => ({ label: table.trials.find(trial => trial.id === id)?.name ?? id, color: colorOf(table.selected.indexOf(id)), key });

function drawTabs() {
  const names = Object.keys(views);
  document.querySelector('nav').replaceChildren(...names.map((name, index) => element('button', {
    role: 'tab', type: 'button', id: 'tab-' + name, 'aria-selected': String(name === current), tabindex: name === current ? 0 : -1,
    onclick: () => open(name),
    onkeydown: event => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move) open(names[(index + move + names.length) % names.length], true);
    },
  }, name)));
}

function open(name, focus = false) {
  current = name;
  location.hash = new URLSearchParams({ view: current, id: table.selected.join(',') });
  drawTabs();
  if (focus) document.querySelector('#tab-' + name).focus();
  draw(true);
}

// Draws the current view; anew after a choice, or only what changed.
async function draw(anew) {
  const mine = ++drawing;
  location.hash = new URLSearchParams({ view: current, id: table.selected.join(',') });
  if (anew) { figures.forEach(figure => figure.plot?.destroy()); figures = new Map(); }
  const trials = selectedTrials();
  try {
    if (!trials.length && current !== 'Search') {
      view.replaceChildren(element('p', { class: 'empty' }, table.trials.length ? 'Select trials above to see them here.' : 'No trials here yet. Record one with ai.Trial.'));
      return;
    }
    await views[current](trials, () => mine === drawing, anew);
  } catch (error) {
    if (mine === drawing) view.replaceChildren(element('p', { class: 'empty' }, String(error)));
  }
}

async function curvesView(trials, still, anew) {
  const keys = [...new Set(trials.flatMap(trial => Object.keys(trial.metrics)))].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  const curves = await getCurves(table.selected, keys, { x: choices.x });
  if (still()) drawCharts(keys, curves, anew, true);
}

async function systemView(trials, still, anew) {
  const details = await Promise.all(trials.map(trial => getJson(`api/trial/${trial.id}`)));
  const keys = [...new Set(details.flatMap(detail => detail.system))];
  const curves = await getCurves(table.selected, keys, { x: 'time', file: 'system' });
  if (!still()) return;
  if (!keys.length) view.replaceChildren(element('p', { class: 'empty' }, 'No system metrics were recorded.'));
  else drawCharts(keys, curves, anew, false);
}

// Losses first, the loop's own numbers last.
const rank = key => key === 'loss' ? 0 : key === 'val_loss' ? 1 : key.includes('loss') ? 2 : key.includes('accuracy') ? 3 : key === 'lr' || key === 'steps_per_s' || key === 'grad_norm' ? 5 : 4;

function drawCharts(keys, curves, anew, isMetrics) {
  const drawn = keys.filter(key => curves.some(curve => curve.key === key));
  if (anew || !figures.size) view.replaceChildren(...(isMetrics ? [controls()] : []), legend(), element('div', { class: 'charts' }));
  const place = view.querySelector('.charts');
  for (const key of drawn) {
    if (!figures.has(key)) {
      const figure = element('figure', {}, element('figcaption', { title: key }, key), element('div'));
      place.append(figure);
      figures.set(key, figure);
    }
    const mine = curves.filter(curve => curve.key === key).map(curve => ({ ...labelled(curve.id, key), x: curve.x, y: curve.y }));
    chart(figures.get(key), key, mine, { log: isMetrics && choices.log, smooth: isMetrics ? choices.smooth : 0, xLabel: isMetrics && choices.x === 'step' ? 'step' : 'seconds' });
  }
}

function controls() {
  const smooth = element('input', { type: 'range', min: 0, max: 0.99, step: 0.01, value: choices.smooth, 'aria-label': 'Smoothing', oninput: () => change('smooth', Number(smooth.value)) });
  const log = element('input', { type: 'checkbox', onchange: () => change('log', log.checked) });
  log.checked = choices.log;
  const x = element('select', { 'aria-label': 'Horizontal axis', onchange: () => change('x', x.value) }, element('option', { value: 'step' }, 'step'), element('option', { value: 'time' }, 'time'));
  x.value = choices.x;
  return element('div', { class: 'controls' }, element('label', {}, 'Smoothing ', smooth), element('label', {}, log, ' Logarithmic'), element('label', {}, 'Over ', x));
}

let changing;
function change(name, value) {
  choices[name] = value;
  memory.set('choices', choices);
  clearTimeout(changing);
  changing = setTimeout(() => draw(false), 60);
}

const legend = () => element('div', { class: 'legend' }, ...selectedTrials().map((trial, index) => element('span', {}, element('span', { class: 'swatch', color: colorOf(index) }), trial.name)));

async function samplesView(trials, still, anew) {
  const details = await Promise.all(trials.map(trial => getJson(`api/trial/${trial.id}`)));
  if (!still()) return;
  const steps = [...new Set(details.flatMap(detail => detail.samples))].sort((a, b) => a - b);
  if (!steps.length) { view.replaceChildren(element('p', { class: 'empty' }, 'No samples were recorded.')); return; }
  const before = view.querySelector('#step');
  if (!anew && before && Number(before.max) === steps.length - 1) return;
  const slider = element('input', { id: 'step', type: 'range', min: 0, max: steps.length - 1, value: steps.length - 1, 'aria-label': 'Step' });
  const told = element('output');
  const pages = details.map((detail, index) => {
    const image = element('img', { alt: `Samples of ${trials[index].name}` });
    return { detail, image, figure: element('figure', {}, element('figcaption', {}, element('span', { class: 'swatch', color: colorOf(index) }), trials[index].name), image) };
  });
  const turn = () => {
    const step = steps[slider.value];
    told.textContent = ` step ${step}`;
    for (const { detail, image } of pages) {
      const nearest = detail.samples.filter(one => one <= step).at(-1);
      if (nearest == null) image.removeAttribute('src');
      else image.src = `api/trial/${detail.id}/sample/${nearest}`;
    }
  };
  slider.addEventListener('input', turn);
  turn();
  view.replaceChildren(element('div', { class: 'controls' }, element('label', {}, 'Step ', slider), told), element('div', { class: 'charts' }, ...pages.map(page => page.figure)));
}

async function configView(trials, still, anew) {
  if (!anew) return;
  const details = await Promise.all(trials.map(trial => getJson(`api/trial/${trial.id}`)));
  if (!still()) return;
  const about = details.map(({ path, state, meta }) => {
    const session = meta.sessions?.at(-1) ?? {};
    return { path, state, error: meta.error, command: session.argv?.join(' '), host: session.host, python: session.python, torch: session.packages?.torch,
      commit: session.git?.commit, branch: session.git?.branch, 'changed characters': session.git?.diff, processor: session.hardware?.processor, sessions: meta.sessions?.length };
  });
  view.replaceChildren(facts('Configuration', trials, details.map(detail => detail.config)), facts('Run', trials, about));
}

function facts(title, trials, columns) {
  const keys = [...new Set(columns.flatMap(column => Object.keys(column)))];
  const rows = keys.map(key => {
    const differs = new Set(columns.map(column => JSON.stringify(column[key]))).size > 1;
    return element('tr', {}, element('th', { scope: 'row' }, key), ...columns.map(column => element('td', { class: differs ? 'differs' : '', title: show(column[key]) }, show(column[key]))));
  });
  return element('table', {}, element('thead', {}, element('tr', {}, element('th', {}, title), ...trials.map(trial => element('th', {}, trial.name)))), element('tbody', {}, ...rows));
}

async function codeView(trials, still, anew) {
  if (!anew) return;
  const diffs = await Promise.all(trials.map(trial => getText(`api/trial/${trial.id}/diff`)));
  if (!still()) return;
  view.replaceChildren(...trials.flatMap((trial, index) => [element('h3', {}, `${trial.name} at ${trial.commit || 'no commit'}`), diffText(diffs[index])]));
}

function diffText(text) {
  const kind = line => line.startsWith('diff ') || line.startsWith('+++') || line.startsWith('---') ? 'file' : line[0] === '+' ? 'plus' : line[0] === '-' ? 'minus' : '';
  const lines = text.split('\n').slice(0, 20000);
  return element('pre', { tabindex: 0 }, ...(text ? lines.map(line => element('span', { class: kind(line) }, line + '\n')) : ['no changes against the commit']));
}

async function logView(trials, still, anew) {
  const logs = await Promise.all(trials.map(trial => getText(`api/trial/${trial.id}/log`)));
  if (!still()) return;
  if (anew) view.replaceChildren(...trials.flatMap(trial => [element('h3', {}, trial.name), element('pre', { tabindex: 0 })]));
  view.querySelectorAll('pre').forEach((place, index) => {
    if (place.textContent === logs[index]) return;
    const atEnd = anew || place.scrollTop + place.clientHeight > place.scrollHeight - 30;
    place.textContent = logs[index];
    if (atEnd) place.scrollTop = place.scrollHeight;
  });
}

function drawSearch(trials, still, anew) {
  if (anew) view.replaceChildren(...searchView(trials.length > 1 ? trials : table.visible()));
}

// What changed is drawn, a slow server is asked less often, a hidden page not at all.
let seen = '';
async function poll() {
  const begun = performance.now();
  try {
    if (!document.hidden || !seen) {
      const text = await getText('api/trials');
      if (text !== seen) {
        const first = !seen;
        seen = text;
        const { root, trials } = JSON.parse(text);
        const versions = () => JSON.stringify(selectedTrials().map(trial => [trial.updated, trial.step, trial.state]));
        const before = versions();
        document.querySelector('#root').textContent = root;
        table.update(trials);
        if (first) restore();
        else if (versions() !== before) draw(false);
      } else if (current === 'Log' || current === 'System') draw(false);
    }
    document.body.removeAttribute('data-lost');
  } catch (error) {
    document.body.setAttribute('data-lost', '');
    document.querySelector('#status').textContent = `no answer: ${error.message}`;
    seen = seen && ' ';
  }
  setTimeout(poll, Math.max(POLL_MS, 5 * (performance.now() - begun)));
}

// The address tells what is looked at, so that it can be kept and shared.
function restore() {
  const told = new URLSearchParams(location.hash.slice(1));
  const known = new Set(table.trials.map(trial => trial.id));
  const ids = (told.get('id') ?? '').split(',').filter(id => known.has(id));
  if (views[told.get('view')]) current = told.get('view');
  if (!ids.length && !told.has('view')) ids.push(...table.visible().slice(0, 1).map(trial => trial.id));
  drawTabs();
  table.select(ids);
  document.querySelector('#runs tr[aria-selected="true"]')?.scrollIntoView({ block: 'nearest' });
}

drawTabs();
poll();
