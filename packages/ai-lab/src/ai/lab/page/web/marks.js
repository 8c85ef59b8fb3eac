// Tags and notes of the selected trials; where the server takes them (it needs a token for that), they are changed here.

import { sendJson } from './api.js';
import { element, named, swatch } from './dom.js';

export function marks(page) {
  const place = element('div', { class: 'facts marks', tabindex: 0, role: 'region', 'aria-label': 'Tags and notes' });
  place.refresh = now => { if (!place.contains(document.activeElement)) fill(place, now); };
  fill(place, page);
  return place;
}

function fill(place, page) {
  place.hidden = !page.editable && page.trials.every(trial => !trial.tags.length && !trial.note);
  const head = element('tr', {}, element('th', {}, 'Tags and notes'), ...page.trials.map(trial => element('th', {}, swatch(page.look(trial.id).color, page.look(trial.id).dash), named(trial.name))));
  const row = (title, cell) => element('tr', {}, element('th', { scope: 'row' }, title), ...page.trials.map(trial => element('td', {}, ...cell(trial))));
  place.replaceChildren(element('table', {}, element('thead', {}, head), element('tbody', {}, row('tags', trial => tags(place, page, trial)), row('note', trial => [note(place, page, trial)]))));
}

async function change(place, page, trial, what) {
  const now = await sendJson(`api/trial/${trial.id}/marks`, what);
  Object.assign(trial, now);
  fill(place, page);
  place.querySelector(`[data-tags="${trial.id}"]`)?.focus();
}

// Runs a change; where it is refused, says why beside it.
async function attempt(place, page, trial, what) {
  try { await change(place, page, trial, what); } catch (error) { place.append(element('p', { class: 'problem', role: 'alert' }, error.message)); }
}

function tags(place, page, trial) {
  const label = tag => element('span', { class: 'tag' }, tag, page.editable ? element('button', { type: 'button', class: 'drop', 'aria-label': `Remove the tag ${tag} of ${trial.name}`, onclick: () => attempt(place, page, trial, { remove: [tag] }) }, '×') : null);
  const shown = trial.tags.map(label);
  if (!page.editable) return shown;
  const input = element('input', { type: 'text', 'data-tags': trial.id, placeholder: 'add a tag', 'aria-label': `Add a tag to ${trial.name}`, onkeydown: event => {
    if (event.key === 'Enter' && input.value.trim()) attempt(place, page, trial, { add: input.value.trim().split(/\s+/) });
  } });
  const isPinned = trial.tags.includes('pinned');
  const pin = element('button', { type: 'button', 'aria-pressed': String(isPinned), onclick: () => attempt(place, page, trial, isPinned ? { remove: ['pinned'] } : { add: ['pinned'] }) }, isPinned ? 'unpin' : 'pin');
  return [...shown, input, pin];
}

function note(place, page, trial) {
  if (!page.editable) return trial.note;
  const input = element('textarea', { rows: 2, 'aria-label': `Note of ${trial.name}`, placeholder: 'a note', onchange: () => attempt(place, page, trial, { note: input.value }) });
  input.value = trial.note;
  return input;
}
