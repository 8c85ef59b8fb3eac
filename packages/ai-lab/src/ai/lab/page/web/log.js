// What the selected trials printed.

import { getText } from './api.js';
import { element, named, swatch } from './dom.js';

export async function logView(page, anew) {
  const logs = await Promise.all(page.trials.map(logOf));
  if (!page.still()) return;
  if (anew) {
    page.show(...page.trials.flatMap(trial => [
      element('h2', {}, swatch(page.look(trial.id).color, page.look(trial.id).dash), named(trial.name), ' ', element('span', { class: 'soft' })), element('pre', { class: 'log', tabindex: 0 })]));
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
