// Pages of samples of the selected trials, side by side, by step.

import { getDetails, pictureAt } from './api.js';
import { element, empty, swatch } from './dom.js';

export async function samplesView(page, anew) {
  const details = (await getDetails(page.trials)).filter(detail => detail.samples.length);
  if (!page.still()) return;
  const steps = [...new Set(details.flatMap(detail => detail.samples))].sort((a, b) => a - b);
  if (!steps.length) { page.show(empty('No samples were recorded: give the trial a sampler.')); return; }
  const before = page.view.querySelector('#step');
  if (!anew && before && Number(before.max) === steps.length - 1) return;
  const atEnd = anew || !before || before.value === before.max;
  const slider = element('input', { id: 'step', type: 'range', min: 0, max: steps.length - 1, value: atEnd ? steps.length - 1 : before.value, 'aria-label': 'Step' });
  const told = element('output');
  const pages = details.map(detail => {
    const { label, color, dash } = page.look(detail.id);
    const [image, step] = [element('img', { alt: `Samples of ${label}` }), element('span', { class: 'soft' })];
    return { detail, image, step, figure: element('figure', {}, element('figcaption', {}, swatch(color, dash), label, ' ', step), image) };
  });
  const turn = () => {
    const wanted = steps[slider.value];
    told.textContent = `step ${wanted} (${Number(slider.value) + 1} of ${steps.length})`;
    for (const { detail, image, step } of pages) {
      const nearest = detail.samples.filter(one => one <= wanted).at(-1);
      image.hidden = nearest == null;
      step.textContent = nearest == null ? 'nothing yet' : nearest === wanted ? '' : `step ${nearest}`;
      if (nearest != null) image.src = pictureAt(`api/trial/${detail.id}/sample/${nearest}`);
    }
  };
  slider.addEventListener('input', turn);
  turn();
  page.show(element('div', { class: 'controls wide' }, element('label', {}, 'Step ', slider), told), element('div', { class: 'charts samples' }, ...pages.map(one => one.figure)));
}
