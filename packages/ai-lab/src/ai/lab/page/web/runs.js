// What the selected trials were told and ran on, their code, and what they printed.

import { getDetails, getText } from './api.js';
import { checkbox, element, lasting, memory, named, show, swatch, when } from './dom.js';

export async function configView(page, anew) {
  if (!anew) return;
  const details = await getDetails(page.trials);
  if (!page.still()) return;
  const about = details.map(({ path, state, meta }) => {
    const session = meta.sessions?.at(-1) ?? {};
    const { git, hardware, packages } = session;
    return {
      state, error: meta.error, started: when(meta.created), lasted: session.end ? lasting(session.end.time - session.time) : null, sessions: meta.sessions?.length,
      commit: git?.commit?.slice(0, 10), branch: git?.branch, 'uncommitted changes': git ? (git.diff ? 'yes' : 'no') : null, command: session.argv?.join(' '), folder: session.cwd,
      host: session.host, processor: hardware?.processor, threads: hardware?.threads, gpus: hardware?.gpus?.map(gpu => gpu.name).join(', '), python: session.python, torch: packages?.torch,
      seed: session.torch_seed, recorded: path,
    };
  });
  const packages = details.map(({ meta }) => meta.sessions?.at(-1)?.packages ?? {});
  const only = memory.get('only differences', false);
  page.show(element('div', { class: 'controls' }, page.trials.length > 1 ? checkbox('Only what differs', only, value => { memory.set('only differences', value); page.redraw(true); }) : null),
    ...facts(page, 'Configuration', details.map(detail => detail.config), only), ...facts(page, 'Run', about, only), ...facts(page, 'Packages', packages, page.trials.length > 1));
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
  return [element('div', { class: 'facts' }, element('table', {}, element('thead', {}, head), element('tbody', {}, ...rows)))];
}

// Trials that ran the same code are told together.
export async function codeView(page, anew) {
  if (!anew) return;
  const diffs = await Promise.all(page.trials.map(trial => getText(`api/trial/${trial.id}/diff`)));
  if (!page.still()) return;
  const groups = new Map();
  page.trials.forEach((trial, index) => {
    const key = `${trial.commit}\n${diffs[index]}`;
    groups.set(key, [...(groups.get(key) ?? []), { trial, diff: diffs[index] }]);
  });
  page.show(...[...groups.values()].flatMap(group => {
    const [{ trial, diff }] = group;
    const names = group.flatMap(({ trial }) => [swatch(page.look(trial.id).color, page.look(trial.id).dash), named(trial.name), ' ']);
    return [element('h3', {}, ...names, element('span', { class: 'soft' }, trial.commit ? `ran at commit ${trial.commit}` : 'ran outside a repository')), ...diffBlocks(diff)];
  }));
}

function diffBlocks(text) {
  if (!text) return [element('p', { class: 'empty' }, 'No changes against the commit.')];
  const untracked = text.split('\n').filter(line => line.startsWith('untracked: ')).map(line => line.slice(11));
  const files = text.split(/^(?=diff --git )/m).filter(part => part.startsWith('diff --git '));
  const blocks = files.map((part, index) => {
    const lines = part.split('\n').filter(line => !line.startsWith('untracked: '));
    const name = lines[0].replace(/^diff --git a\/.* b\//, '');
    const count = sign => lines.filter(line => line[0] === sign && !line.startsWith(sign.repeat(3))).length;
    const shown = lines.slice(0, 5000).map(line => element('span', { class: kind(line) }, line + '\n'));
    const head = element('summary', {}, name, ' ', element('span', { class: 'plus' }, `+${count('+')}`), ' ', element('span', { class: 'minus' }, `−${count('-')}`));
    return element('details', { class: 'file', open: index < 8 && lines.length < 400 }, head, element('pre', { tabindex: 0 }, ...shown, lines.length > 5000 ? '… the rest is in meta.json' : null));
  });
  if (untracked.length) blocks.push(element('details', { class: 'file' }, element('summary', {}, `${untracked.length} untracked files`), element('pre', { tabindex: 0 }, untracked.join('\n'))));
  return blocks;
}

const kind = line => line.startsWith('+++') || line.startsWith('---') || line.startsWith('diff ') || line.startsWith('index ') ? 'soft' : line.startsWith('@@') ? 'place' : line[0] === '+' ? 'plus' : line[0] === '-' ? 'minus' : '';

export async function logView(page, anew) {
  const logs = await Promise.all(page.trials.map(logOf));
  if (!page.still()) return;
  if (anew) {
    page.show(...page.trials.flatMap(trial => [
      element('h3', {}, swatch(page.look(trial.id).color, page.look(trial.id).dash), named(trial.name), ' ', element('span', { class: 'soft' })), element('pre', { class: 'log', tabindex: 0 })]));
  }
  page.view.querySelectorAll('pre').forEach((place, index) => {
    const text = logs[index] || 'Nothing was printed.';
    place.previousSibling.lastChild.textContent = text.length > 60_000 ? 'the end of log.txt' : '';
    if (shownLogs.get(place) === text) return;
    const atEnd = anew || place.scrollTop + place.clientHeight > place.scrollHeight - 30;
    place.replaceChildren(...colored(text));
    shownLogs.set(place, text);
    if (atEnd) place.scrollTop = place.scrollHeight;
  });
}

const shownLogs = new WeakMap();
const endedLogs = new Map(); // of runs that ended, which are not asked again

async function logOf(trial) {
  const ended = !['running', 'created'].includes(trial.state);
  const key = [trial.id, trial.state, trial.updated, trial.created].join(' ');
  if (ended && endedLogs.has(key)) return endedLogs.get(key);
  const text = await getText(`api/trial/${trial.id}/log`);
  if (endedLogs.size > 100) endedLogs.clear();
  if (ended) endedLogs.set(key, text);
  return text;
}

// Text with a terminal's colours: of its escape sequences colour and weight are shown, the others are left out.
function colored(text) {
  let [color, bold] = [null, false];
  return text.split(/(\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\))/).flatMap((part, index) => {
    if (index % 2 === 0) return part ? [color == null && !bold ? part : element('span', { class: `${color == null ? '' : `ansi-${color}`}${bold ? ' bold' : ''}` }, part)] : [];
    const codes = part.match(/^\x1b\[([\d;]*)m$/)?.[1].split(';').map(Number) ?? [];
    for (let at = 0; at < codes.length; at++) {
      const code = codes[at];
      if (code === 0) [color, bold] = [null, false];
      else if (code === 1) bold = true;
      else if (code === 22) bold = false;
      else if (code === 39) color = null;
      else if (code >= 30 && code <= 37) color = code - 30;
      else if (code >= 90 && code <= 97) color = code - 90;
      else if (code === 38 || code === 48) at += codes[at + 1] === 5 ? 2 : 4; // one of 256 colours, or any: not shown
    }
    return [];
  });
}
