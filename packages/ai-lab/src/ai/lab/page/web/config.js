// What the selected trials were told and ran on, side by side, and what was said of them afterwards.

import * as address from './address.js';
import { getDetails } from './api.js';
import { checkbox, element, lasting, named, show, swatch, when } from './dom.js';
import { marks } from './marks.js';

export async function configView(page, anew) {
  if (!anew) { page.view.querySelectorAll('.marks').forEach(place => place.refresh(page)); return; }
  const details = await getDetails(page.trials);
  if (!page.still()) return;
  const about = details.map(({ path, state, meta, problems }) => {
    const session = meta.sessions?.at(-1) ?? {};
    const { git, hardware, packages } = session;
    return {
      state, damaged: problems.join('; '), error: meta.error, started: when(meta.created), lasted: session.end ? lasting(session.end.time - session.time) : null, sessions: meta.sessions?.length,
      commit: git?.commit?.slice(0, 10), branch: git?.branch, 'uncommitted changes': git ? (git.diff ? 'yes' : 'no') : null, command: session.argv?.join(' '), folder: session.cwd,
      host: session.host, processor: hardware?.processor, threads: hardware?.threads, gpus: hardware?.gpus?.map(gpu => gpu.name).join(', '), python: session.python, torch: packages?.torch,
      seed: meta.seed, "torch's seed when it began": session.torch_seed, recorded: path,
    };
  });
  const packages = details.map(({ meta }) => meta.sessions?.at(-1)?.packages ?? {});
  const only = address.get('differences', false);
  page.show(element('div', { class: 'controls' }, page.trials.length > 1 ? checkbox('Only what differs', only, value => { address.set('differences', value, false, true); page.redraw(true); }) : null),
    marks(page), ...facts(page, 'Configuration', details.map(detail => detail.config), only), ...facts(page, 'Run', about, only), ...facts(page, 'Packages', packages, page.trials.length > 1));
}

function facts(page, title, columns, only) {
  const rows = [...new Set(columns.flatMap(column => Object.keys(column)))].flatMap(key => {
    const values = columns.map(column => column[key]);
    if (values.every(value => value == null || value === '')) return [];
    const differs = new Set(values.map(value => JSON.stringify(value))).size > 1;
    if (only && !differs) return [];
    return [element('tr', {}, element('th', { scope: 'row' }, key), ...values.map(value => element('td', { class: differs ? 'differs' : '' }, value == null || value === '' ? element('span', { class: 'soft' }, '–') : show(value))))];
  });
  if (!rows.length) return title === 'Packages' || !only ? [] : [element('p', { class: 'empty' }, `${title}: no difference.`)];
  const head = element('tr', {}, element('th', {}, title === 'Packages' && only ? 'Packages that differ' : title), ...page.trials.map(trial => element('th', {}, swatch(page.look(trial.id).color, page.look(trial.id).dash), named(trial.name))));
  return [element('div', { class: 'facts', tabindex: 0, role: 'region', 'aria-label': title }, element('table', {}, element('thead', {}, head), element('tbody', {}, ...rows)))];
}

