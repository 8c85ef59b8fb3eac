// The page: a table of trials above, views of the selected ones below. Asks the server once a second what changed.

import * as address from './address.js';
import { getJson, isPublished } from './api.js';
import { codeView } from './code.js';
import { configView } from './config.js';
import { curvesView, forgetCharts, systemView } from './curves.js';
import { colorOf, dashOf, element, empty } from './dom.js';
import { logView } from './log.js';
import { mediaView } from './media.js';
import { samplesView } from './samples.js';
import { searchView } from './search.js';
import { Table } from './table.js';

const POLL_MS = 1000;
const view = document.querySelector('#view');
const table = new Table(() => draw(true));
const views = { Curves: curvesView, Samples: samplesView, Media: mediaView, Config: configView, Code: codeView, System: systemView, Search: searchView, Log: logView };
let current = 'Curves';
let drawing = 0;
let busy = false; // a draw is under way
let again = null; // something changed meanwhile, so that it must be drawn again: anew, or what changed
let owed = false; // no draw since the last choice came to its end
let told = { trials: [], experiments: {}, editable: false };

function drawTabs() {
  const names = Object.keys(views);
  document.querySelector('nav').replaceChildren(...names.map((name, index) => element('button', {
    role: 'tab', type: 'button', id: 'tab-' + name, 'aria-selected': String(name === current), 'aria-controls': 'view', tabindex: name === current ? 0 : -1,
    onclick: () => open(name),
    onkeydown: event => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move) open(names[(index + move + names.length) % names.length], true);
    },
  }, name)));
}

function open(name, focus = false) {
  current = name;
  drawTabs();
  if (focus) document.querySelector('#tab-' + name).focus();
  draw(true);
}

// Draws the current view; anew after a choice, or only what changed. What a view may use is in `page`: the selected
// rows of the table, and the trials in them.
async function draw(anew) {
  const mine = ++drawing;
  [busy, again, owed] = [true, null, owed || anew];
  address.set('view', current, '');
  address.set('id', table.selected.join(','), null);
  const rows = table.selectedRows();
  const rowOf = new Map(rows.flatMap(row => (row.members ?? []).map(trial => [trial.id, row.id])));
  const look = id => {
    const place = table.selected.indexOf(rowOf.get(id) ?? id);
    return { label: table.trials.find(trial => trial.id === id)?.name ?? id, color: colorOf(place), dash: dashOf(place) };
  };
  const page = {
    view, rows, trials: rows.flatMap(row => row.members ?? [row]), shown: () => table.visible().flatMap(row => row.members ?? [row]), experiments: told.experiments, editable: told.editable,
    still: () => mine === drawing,
    show: (...children) => { if (mine === drawing) { forgetCharts(); view.replaceChildren(...children.filter(Boolean)); } },
    redraw: draw,
    select: ids => table.select(ids),
    look,
  };
  try {
    if (page.trials.length || current === 'Search') await views[current](page, owed);
    else page.show(empty(table.trials.length ? 'Select trials above to see them here.' : 'No trials here yet. Record one with ai.Trial: it appears here by itself.'));
    if (mine === drawing) [view.dataset.drawn, owed] = [current, false];
  } catch (error) {
    page.show(empty(String(error)));
    if (mine === drawing) owed = true;
  }
  if (mine !== drawing) return;
  busy = false;
  if (again !== null) draw(again);
}

// Draws what changed: a draw under way comes to its end first, or a slow one never would.
function follow(anew) {
  if (!busy) draw(anew);
  else again ||= anew;
}

// Only what changed is sent and drawn; a slow server is asked less often, a hidden page not at all.
let [epoch, version] = ['', -1];
async function poll() {
  const begun = performance.now();
  try {
    if (!document.hidden || version < 0) {
      let answer = await getJson(`api/trials?since=${version}`);
      if (version >= 0 && answer.epoch !== epoch) answer = await getJson('api/trials'); // another server by now
      take(answer, version < 0, answer.epoch !== epoch);
      [epoch, version] = [answer.epoch, answer.version];
    }
    if (document.body.hasAttribute('data-lost')) { table.draw(); if (owed) follow(false); }
    document.body.removeAttribute('data-lost');
  } catch (error) {
    document.body.setAttribute('data-lost', '');
    document.querySelector('#status').textContent = `no answer: ${error.message}`;
  }
  if (!isPublished) setTimeout(poll, Math.max(POLL_MS, 5 * (performance.now() - begun)));
}

function take(answer, first, whole) {
  const selected = () => table.selectedRows().flatMap(row => row.members ?? [row]);
  const experiments = JSON.stringify(answer.experiments) !== JSON.stringify(told.experiments);
  if (!first && !whole && !experiments && !answer.trials.length && !answer.gone.length) {
    if ((current === 'Log' || current === 'System') && selected().some(trial => trial.state === 'running')) follow(false);
    return;
  }
  const versions = () => JSON.stringify(selected().map(trial => [trial.updated, trial.step, trial.state, trial.tags, trial.note]));
  const before = versions();
  const trials = whole ? new Map() : new Map(told.trials.map(trial => [trial.id, trial]));
  for (const id of answer.gone) trials.delete(id);
  for (const trial of answer.trials) trials.set(trial.id, { ...trial, keys: Object.keys(trial.metrics) });
  told = { trials: [...trials.values()], experiments: answer.experiments, editable: answer.editable };
  document.querySelector('#root').textContent = answer.root;
  table.update(told.trials);
  if (first) restore();
  else if (versions() !== before) follow(false);
  else if (!table.selected.length || current === 'Search') follow(current !== 'Search');
}

// The address tells what is looked at, so that it can be kept and shared.
function restore() {
  const ids = address.get('id', '').split(',').filter(id => table.known.has(id));
  const wanted = address.get('view', '');
  if (Object.hasOwn(views, wanted)) current = wanted;
  if (!ids.length && !address.isGiven('view')) ids.push(...table.visible().slice(0, 1).map(row => row.id));
  drawTabs();
  table.select(ids);
  if (ids.length) table.reveal(ids[0]);
}

drawTabs();
poll();
