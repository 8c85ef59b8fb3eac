// The code that the selected trials ran; those that ran the same are told together.

import { getText } from './api.js';
import { element, named, swatch } from './dom.js';

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
    return [element('h2', {}, ...names, element('span', { class: 'soft' }, trial.commit ? `ran at commit ${trial.commit}` : 'ran outside a repository')), ...diffBlocks(diff)];
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
  if (untracked.length) blocks.push(element('details', { class: 'file' }, element('summary', {}, untracked.length === 1 ? '1 untracked file' : `${untracked.length} untracked files`), element('pre', { tabindex: 0 }, untracked.join('\n'))));
  return blocks;
}

const kind = line => line.startsWith('+++') || line.startsWith('---') || line.startsWith('diff ') || line.startsWith('index ') ? 'soft' : line.startsWith('@@') ? 'place' : line[0] === '+' ? 'plus' : line[0] === '-' ? 'minus' : '';
