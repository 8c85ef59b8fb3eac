// Pages of samples of the selected trials, side by side, by step.

import { getDetails, pictureAt } from './api.js';
import { element, empty, swatch } from './dom.js';
import { stepChoice } from './steps.js';

export async function samplesView(page, anew) {
  const details = (await getDetails(page.trials)).filter(detail => detail.samples.length);
  if (!page.still()) return;
  const steps = [...new Set(details.flatMap(detail => detail.samples))].sort((a, b) => a - b);
  if (!steps.length) { page.show(empty('No samples were recorded: give the trial a sampler.')); return; }
  if (!anew && Number(page.view.querySelector('#step')?.max) === steps.length - 1) return;
  const pages = details.map(detail => {
    const { label, color, dash } = page.look(detail.id);
    const [image, step] = [element('img', { alt: `Samples of ${label}` }), element('span', { class: 'soft' })];
    return { detail, image, step, figure: element('figure', {}, element('figcaption', {}, swatch(color, dash), label, ' ', step), image) };
  });
  const { controls, begin } = stepChoice(steps, wanted => {
    for (const { detail, image, step } of pages) {
      const nearest = detail.samples.filter(one => one <= wanted).at(-1);
      image.hidden = nearest == null;
      step.textContent = nearest == null ? 'nothing yet' : nearest === wanted ? '' : `step ${nearest}`;
      if (nearest != null) image.src = pictureAt(`api/trial/${detail.id}/sample/${nearest}`);
    }
  });
  begin();
  page.show(controls, element('div', { class: 'charts samples' }, ...pages.map(one => one.figure)));
}
