// The step at which samples, and whatever else was kept, are looked at: one for both views, kept in the address.

import * as address from './address.js';
import { element } from './dom.js';

const LAST = -1; // whichever it is by then

// Makes the controls that choose one of `steps`. `turn` is called with it by `begin`, and whenever another is chosen.
export function stepChoice(steps, turn) {
  const end = steps.length - 1;
  const at = address.get('step', LAST);
  const slider = element('input', { id: 'step', type: 'range', min: 0, max: end, value: at === LAST ? end : Math.max(0, steps.findLastIndex(step => step <= at)), 'aria-label': 'Step' });
  const told = element('output');
  const begin = () => {
    const place = Number(slider.value);
    told.textContent = `step ${steps[place]} (${place + 1} of ${steps.length})`;
    return turn(steps[place]);
  };
  slider.addEventListener('input', () => {
    address.set('step', Number(slider.value) === end ? LAST : steps[slider.value], LAST);
    begin();
  });
  return { controls: element('div', { class: 'controls wide' }, element('label', {}, 'Step ', slider), told), begin };
}
